"""The few functions of NVIDIA's driver (libcuda.so.1) that no torch offers, through ctypes.

Device memory that processes share is made of the driver's virtual memory functions: an allocation (`create`) is
exported as a descriptor, and each process maps it at an address of its own. An allocation lives as long as a handle,
a descriptor or a mapping of it does, in whatever process, and needs no context (NVIDIA's sample memMapIPCDrv shows
both). Names, values and layouts are those of cuda.h, whose `_v2` names are what its macros stand for.

Every function is called without the GIL. Torch-free, since the process that holds a pool has no torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_ushort, c_void_p
from typing import Any, Final

LIBRARY: Final = "libcuda.so.1"
UUID_BYTES: Final = 16

# CUresult, those that are told apart.
OUT_OF_MEMORY: Final = 2
_INVALID_DEVICE: Final = 101
# NOT_PERMITTED, NOT_SUPPORTED: the platform has no such function, whoever asks.
UNSUPPORTED_ERRORS: Final = frozenset({800, 801})

# CUdevice_attribute
_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED: Final = 102
_POSIX_FILE_DESCRIPTOR_SUPPORTED: Final = 103

_ALLOCATION_TYPE_PINNED: Final = 1
_LOCATION_TYPE_DEVICE: Final = 1
_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR: Final = 1
_GRANULARITY_RECOMMENDED: Final = 1
_ACCESS_READ_WRITE: Final = 3


class MemLocation(ctypes.Structure):
    """CUmemLocation."""

    _fields_ = (("type", c_int), ("id", c_int))


class _AllocFlags(ctypes.Structure):
    _fields_ = (
        ("compression_type", c_ubyte),
        ("gpu_direct_rdma_capable", c_ubyte),
        ("usage", c_ushort),
        ("reserved", c_ubyte * 4),
    )


class MemAllocationProp(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = (
        ("type", c_int),
        ("requested_handle_types", c_int),
        ("location", MemLocation),
        ("win32_handle_meta_data", c_void_p),
        ("alloc_flags", _AllocFlags),
    )


class MemAccessDesc(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = (("location", MemLocation), ("flags", c_int))


# CUdevice and file descriptors are int; CUdeviceptr and CUmemGenericAllocationHandle are unsigned long long.
_SIGNATURES: Final[dict[str, tuple[Any, ...]]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetUuid_v2": (c_void_p, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuCtxSynchronize": (),
    "cuMemGetAllocationGranularity": (POINTER(c_size_t), POINTER(MemAllocationProp), c_int),
    "cuMemCreate": (POINTER(c_uint64), c_size_t, POINTER(MemAllocationProp), c_uint64),
    "cuMemRelease": (c_uint64,),
    "cuMemExportToShareableHandle": (c_void_p, c_uint64, c_int, c_uint64),
    "cuMemImportFromShareableHandle": (POINTER(c_uint64), c_void_p, c_int),
    "cuMemAddressReserve": (POINTER(c_uint64), c_size_t, c_size_t, c_uint64, c_uint64),
    "cuMemAddressFree": (c_uint64, c_size_t),
    "cuMemMap": (c_uint64, c_size_t, c_size_t, c_uint64, c_uint64),
    "cuMemUnmap": (c_uint64, c_size_t),
    "cuMemSetAccess": (c_uint64, c_size_t, POINTER(MemAccessDesc), c_size_t),
    "cuMemsetD8_v2": (c_uint64, c_ubyte, c_size_t),
    "cuLaunchHostFunc": (c_void_p, c_void_p, c_void_p),
}


class CudaError(Exception):
    """A function of the driver failed, or there is no driver (`code` is None then)."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        # CUresult
        self.code = code

    @property
    def is_unsupported(self) -> bool:
        """Whether the platform lacks the function, so that trying again is of no use."""
        return self.code is None or self.code in UNSUPPORTED_ERRORS


class CudaDriver:
    """The driver, initialised. Every method raises CudaError."""

    def __init__(self, path: str = LIBRARY) -> None:
        """Loads and initialises it, which takes up to some seconds where no other process uses a GPU."""
        try:
            self._library = ctypes.CDLL(path)
        except OSError as error:
            raise CudaError(f"there is no NVIDIA driver: {error}") from error
        for name, arguments in _SIGNATURES.items():
            try:
                function = getattr(self._library, name)
            except AttributeError as error:
                raise CudaError(f"the NVIDIA driver is too old: it has no {name}") from error
            function.argtypes, function.restype = arguments, c_int
        # Once for each step, so not through _call.
        self._launch_host_func = self._library.cuLaunchHostFunc
        self._call("cuInit", 0)

    # Devices

    def device(self, ordinal: int) -> int:
        """The device of this ordinal, which counts what CUDA_VISIBLE_DEVICES leaves, as torch does."""
        device = c_int()
        self._call("cuDeviceGet", byref(device), ordinal)
        return device.value

    def uuid(self, device: int) -> bytes:
        """The 16 bytes that name the device (or the part of one) on this machine, whatever is visible."""
        uuid = ctypes.create_string_buffer(UUID_BYTES)
        self._call("cuDeviceGetUuid_v2", uuid, device)
        return uuid.raw

    def find(self, uuid: bytes) -> int:
        """The visible device that has this UUID."""
        count = c_int()
        self._call("cuDeviceGetCount", byref(count))
        for device in map(self.device, range(count.value)):
            if self.uuid(device) == uuid:
                return device
        raise CudaError(f"none of the {count.value} visible devices has the UUID {uuid.hex()}", _INVALID_DEVICE)

    def can_export(self, device: int) -> bool:
        """Whether its memory can be exported as descriptors, as far as it says."""
        wanted = (_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, _POSIX_FILE_DESCRIPTOR_SUPPORTED)
        return all(self._attribute(attribute, device) for attribute in wanted)

    def retain_primary_context(self, device: int) -> int:
        """The context that all libraries of the process share, made if need be; `release_primary_context` undoes it."""
        context = c_void_p()
        self._call("cuDevicePrimaryCtxRetain", byref(context), device)
        return context.value or 0

    def release_primary_context(self, device: int) -> None:
        """The last release destroys the context."""
        self._call("cuDevicePrimaryCtxRelease_v2", device)

    def set_current_context(self, context: int) -> None:
        """Of this thread; 0: none."""
        self._call("cuCtxSetCurrent", context)

    def synchronize(self) -> None:
        """Waits for all work of the thread's context."""
        self._call("cuCtxSynchronize")

    # Memory

    def granularity(self, device: int) -> int:
        """Bytes of which sizes of exportable allocations on the device are multiples."""
        granularity = c_size_t()
        properties = _exportable_on(device)
        self._call("cuMemGetAllocationGranularity", byref(granularity), byref(properties), _GRANULARITY_RECOMMENDED)
        return granularity.value

    def create(self, device: int, size: int) -> int:
        """The handle of a new exportable allocation; `size` is a multiple of `granularity`."""
        handle = c_uint64()
        self._call("cuMemCreate", byref(handle), size, byref(_exportable_on(device)), 0)
        return handle.value

    def release(self, handle: int) -> None:
        """Lets go of a handle; mappings and descriptors keep the allocation."""
        self._call("cuMemRelease", handle)

    def export_handle(self, handle: int) -> int:
        """A descriptor of an allocation, the caller's to close."""
        descriptor = c_int(-1)
        self._call("cuMemExportToShareableHandle", byref(descriptor), handle, _HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0)
        os.set_inheritable(descriptor.value, False)
        return descriptor.value

    def import_handle(self, descriptor: int) -> int:
        """The handle of the allocation that a descriptor names; the descriptor stays the caller's."""
        handle = c_uint64()
        # The number itself, in the place of a pointer.
        self._call("cuMemImportFromShareableHandle", byref(handle), descriptor, _HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        return handle.value

    def map(self, handle: int, size: int, device: int) -> int:
        """The address of a new mapping of a whole allocation, readable and writable on the device."""
        address = c_uint64()
        with contextlib.ExitStack() as on_failure:
            self._call("cuMemAddressReserve", byref(address), size, 0, 0, 0)
            on_failure.callback(self._call, "cuMemAddressFree", address, size)
            self._call("cuMemMap", address, size, 0, handle, 0)
            on_failure.callback(self._call, "cuMemUnmap", address, size)
            access = MemAccessDesc(MemLocation(_LOCATION_TYPE_DEVICE, device), _ACCESS_READ_WRITE)
            self._call("cuMemSetAccess", address, size, byref(access), 1)
            on_failure.pop_all()
        return address.value

    def unmap(self, address: int, size: int) -> None:
        """Undoes `map`. Nothing on the device may use the memory any more."""
        self._call("cuMemUnmap", address, size)
        self._call("cuMemAddressFree", address, size)

    def fill(self, address: int, value: int, size: int) -> None:
        """Sets `size` bytes to `value`, in order with the default stream of the thread's context."""
        self._call("cuMemsetD8_v2", address, value, size)

    # Streams

    def launch_host_function(self, stream: int, function_pointer: int, argument: int) -> None:
        """Has a thread of the driver call `void function(void *argument)` once all earlier work of the stream is done.

        Args:
            stream: a CUstream, such as `torch.cuda.Stream.cuda_stream`.
            function_pointer: address of a C function, which must not call CUDA. Not of a Python function: the GIL
                could make the device wait.
            argument: what it is given, as it is.
        """
        code = self._launch_host_func(stream, function_pointer, argument)
        if code:
            raise self._error("cuLaunchHostFunc", code)

    def _attribute(self, attribute: int, device: int) -> int:
        value = c_int()
        self._call("cuDeviceGetAttribute", byref(value), attribute, device)
        return value.value

    def _call(self, function: str, *arguments: object) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            raise self._error(function, code)

    def _error(self, function: str, code: int) -> CudaError:
        texts = []
        for describe in (self._library.cuGetErrorName, self._library.cuGetErrorString):
            text = c_char_p()
            # An unknown code leaves NULL.
            describe(code, byref(text))
            texts.append((text.value or b"unknown error").decode(errors="replace"))
        return CudaError(f"{function} failed: {texts[0]} ({code}), {texts[1]}", code)


@functools.cache
def load_driver() -> CudaDriver:
    """The driver, once for each process. Raises CudaError where there is none that can be used."""
    return CudaDriver()


def _exportable_on(device: int) -> MemAllocationProp:
    return MemAllocationProp(
        type=_ALLOCATION_TYPE_PINNED,
        requested_handle_types=_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
        location=MemLocation(_LOCATION_TYPE_DEVICE, device),
    )
