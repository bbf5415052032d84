"""The pool's memory on a real device: it outlives a killed executor, and torch computes on it without a copy."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from quire.cuda_driver import CudaDriver, load_driver
from quire.device_pool.client import HolderClient
from quire.device_pool.holder import PoolHolder, serve_at
from quire.executor.device_memory import DeviceMemory
from quire.packet_server import listen

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

SIZE = 512 * 2**20 + 12345
# What torch and the driver may take beside it: modules, caches.
SLACK = 256 * 2**20
DEVICE = torch.device("cuda")

# Writes a pattern that depends on the place, over the whole pool, and dies without a word.
_WRITER = """
import os, signal, sys, torch
from pathlib import Path
from quire.executor.device_memory import DeviceMemory
pool, has_content = DeviceMemory(torch.device("cuda"), Path(sys.argv[1])).attach(7, int(sys.argv[2]), is_new=False)
assert not has_content and not pool.any()
pool.copy_(torch.arange(len(pool), device="cuda") % 251)
torch.cuda.synchronize()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def driver() -> CudaDriver:
    driver = load_driver()
    if not driver.can_export(driver.device(0)):
        pytest.skip("this platform cannot export device memory")
    return driver


@pytest.fixture
def address(tmp_path: Path) -> Iterator[Path]:
    """Of `quire device-pool`, without a context on the device."""
    address = tmp_path / "device-pool.sock"
    status, child_status = os.pipe()
    command = [sys.executable, "-P", "-m", "quire", "device-pool", "--address", str(address)]
    with subprocess.Popen([*command, "--status-fd", str(child_status)], pass_fds=[child_status]) as process:
        os.close(child_status)
        try:
            assert b'"ready"' in os.read(status, 4096)
            yield address
        finally:
            os.close(status)
            process.terminate()


def test_it_outlives_a_killed_executor(driver: CudaDriver, address: Path) -> None:
    ended = subprocess.run([sys.executable, "-P", "-c", _WRITER, str(address), str(SIZE)], check=False, timeout=120)
    assert ended.returncode == -9
    attached = DeviceMemory(DEVICE, address).attach(7, SIZE, is_new=False)
    assert attached is not None
    pool, has_content = attached
    assert has_content and pool.shape == (SIZE,) and pool.dtype == torch.uint8 and pool.device.type == "cuda"
    assert torch.equal(pool, (torch.arange(SIZE, device="cuda") % 251).to(torch.uint8))


def test_views_keep_it_mapped_and_the_last_unmaps_it(driver: CudaDriver, address: Path) -> None:
    memory = DeviceMemory(DEVICE, address)
    before = _free()
    attached = memory.attach(8, SIZE, is_new=False)
    assert attached is not None
    pool, has_content = attached
    assert not has_content and not pool.any()
    view = pool[: SIZE // 2 * 2].view(torch.bfloat16)
    del pool, attached
    view.fill_(3)
    assert view.sum(dtype=torch.float64) == 3 * (SIZE // 2)
    held = memory.held_bytes()
    assert SIZE <= held <= SIZE + SLACK
    # Work that was launched on another stream, and not waited for, is done before the memory goes.
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(100):
            view.add_(1)
    del view
    gc.collect()
    assert before - _free() <= held + SLACK
    # Another pool takes the place of the last: its memory is free then.
    assert memory.attach(9, SIZE, is_new=False) is not None
    gc.collect()
    assert before - _free() <= held + SLACK


def test_new_memory_is_not_the_old(driver: CudaDriver, tmp_path: Path) -> None:
    address = tmp_path / "here.sock"
    with closing(PoolHolder(driver)) as holder, closing(serve_at(listen(address), holder)):
        client = HolderClient(address, driver, driver.device(0))
        old, _ = client.attach(7, SIZE)
        torch.as_tensor(old, device=DEVICE).fill_(1)
        new, has_content = client.attach(7, SIZE, is_new=True)
        assert not has_content and not torch.as_tensor(new, device=DEVICE).any()
        assert torch.as_tensor(old, device=DEVICE).all()


def _free() -> int:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]
