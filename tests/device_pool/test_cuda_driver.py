"""The binding, against a stand-in that is written in C after the driver's reference."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import pytest
from support import fake_cuda

from quire.cuda_driver import CudaDriver, CudaError, MemAccessDesc, MemAllocationProp, MemLocation

_LAYOUT = """
#include "cuda_abi.h"
#include <cstdio>
int main() {
    printf("%zu %zu %zu ", sizeof(CUmemLocation), sizeof(CUmemAllocationProp), sizeof(CUmemAccessDesc));
    printf("%zu %zu ", offsetof(CUmemLocation, id), offsetof(CUmemAllocationProp, requestedHandleTypes));
    printf("%zu %zu ", offsetof(CUmemAllocationProp, location), offsetof(CUmemAllocationProp, win32HandleMetaData));
    printf("%zu %zu ", offsetof(CUmemAllocationProp, allocFlags), offsetof(CUmemAccessDesc, flags));
    printf("%zu %zu\\n", sizeof(CUdeviceptr), sizeof(CUmemGenericAllocationHandle));
}
"""


def test_structures_are_laid_out_as_in_c(tmp_path: Path) -> None:
    (tmp_path / "layout.cpp").write_text(_LAYOUT)
    command = ["g++", f"-I{fake_cuda.SOURCES}", str(tmp_path / "layout.cpp"), "-o", str(tmp_path / "layout")]
    subprocess.run(command, check=True)
    printed = subprocess.run([str(tmp_path / "layout")], check=True, capture_output=True, text=True).stdout
    assert list(map(int, printed.split())) == [
        ctypes.sizeof(MemLocation),
        ctypes.sizeof(MemAllocationProp),
        ctypes.sizeof(MemAccessDesc),
        MemLocation.id.offset,
        MemAllocationProp.requested_handle_types.offset,
        MemAllocationProp.location.offset,
        MemAllocationProp.win32_handle_meta_data.offset,
        MemAllocationProp.alloc_flags.offset,
        MemAccessDesc.flags.offset,
        ctypes.sizeof(ctypes.c_uint64),
        ctypes.sizeof(ctypes.c_uint64),
    ]


def test_devices_have_names(driver: CudaDriver) -> None:
    assert [driver.find(uuid) for uuid in fake_cuda.UUIDS] == [0, 1]
    assert driver.uuid(driver.device(1)) == fake_cuda.UUIDS[1]
    assert driver.can_export(0)
    with pytest.raises(CudaError, match="none of the 2 visible devices has the UUID 5a5a"):
        driver.find(b"Z" * 16)


def test_memory_lives_as_long_as_something_names_it(driver: CudaDriver) -> None:
    size = driver.granularity(0)
    handle = driver.create(0, size)
    descriptor = driver.export_handle(handle)
    assert not os.get_inheritable(descriptor)
    driver.release(handle)
    first = _map(driver, descriptor, size)
    ctypes.memset(first, 7, size)
    driver.unmap(first, size)
    second = _map(driver, descriptor, size)
    os.close(descriptor)
    assert ctypes.string_at(second, size) == b"\7" * size
    driver.unmap(second, size)


def test_errors_say_what_failed(driver: CudaDriver) -> None:
    with pytest.raises(
        CudaError, match=r"^cuMemCreate failed: CUDA_ERROR_OUT_OF_MEMORY \(2\), out of memory$"
    ) as caught:
        driver.create(0, 1 << 40)
    assert caught.value.code == 2 and not caught.value.is_unsupported
    with pytest.raises(CudaError, match=r"^cuDeviceGet failed: unknown error \(101\), unknown error$"):
        driver.device(9)


def test_what_fails_half_way_leaves_nothing_reserved(driver: CudaDriver) -> None:
    size = driver.granularity(0)
    maps = Path("/proc/self/maps").read_text().count("\n")
    for _ in range(20):
        with pytest.raises(CudaError, match="cuMemMap failed: CUDA_ERROR_INVALID_HANDLE"):
            driver.map(1, size, 0)
    assert Path("/proc/self/maps").read_text().count("\n") < maps + 20


def test_a_host_function_is_called_with_its_argument(driver: CudaDriver) -> None:
    called: list[int] = []
    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda argument: called.append(argument or 0))
    driver.launch_host_function(0, ctypes.cast(callback, ctypes.c_void_p).value or 0, 1 << 40)
    assert called == [1 << 40]


def test_no_driver(tmp_path: Path) -> None:
    with pytest.raises(CudaError, match="there is no NVIDIA driver") as caught:
        CudaDriver(str(tmp_path / "libcuda.so.1"))
    assert caught.value.is_unsupported


def test_a_driver_without_virtual_memory() -> None:
    with pytest.raises(CudaError, match="the NVIDIA driver is too old: it has no cuInit"):
        CudaDriver("libc.so.6")


def _map(driver: CudaDriver, descriptor: int, size: int) -> int:
    handle = driver.import_handle(descriptor)
    address = driver.map(handle, size, 0)
    driver.release(handle)
    return address
