"""An allocation of device memory, mapped into this process."""

from __future__ import annotations

import weakref
from typing import Any

from quire.cuda_driver import CudaDriver


class MappedMemory:
    """Readable and writable bytes on a device, as `torch.as_tensor` takes them without a copy.

    They are unmapped when the last tensor on them is gone, once the device has done all work that was launched before;
    not at the end of the process, which unmaps them anyway.
    """

    def __init__(self, driver: CudaDriver, device: int, descriptor: int, size: int, num_bytes: int) -> None:
        """Maps the allocation of `size` bytes that the descriptor names, of which `num_bytes` are used.

        The descriptor stays the caller's. Raises CudaError.
        """
        self.num_bytes = num_bytes
        self._driver = driver
        # The one that torch uses: kept, so that the end of the mapping can wait for its streams.
        self._context = driver.retain_primary_context(device)
        try:
            handle = driver.import_handle(descriptor)
            try:
                self.address = driver.map(handle, size, device)
            finally:
                driver.release(handle)
        except BaseException:
            driver.release_primary_context(device)
            raise
        end = weakref.finalize(self, _unmap, driver, device, self._context, self.address, size)
        end.atexit = False

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of Numba's protocol: uint8 [num_bytes]."""
        return {
            "shape": (self.num_bytes,),
            "typestr": "|u1",
            "data": (self.address, False),
            "strides": None,
            "version": 3,
        }

    def clear(self) -> None:
        """Fills it with zeros; returns when that is done. Raises CudaError."""
        self._driver.set_current_context(self._context)
        self._driver.fill(self.address, 0, self.num_bytes)
        self._driver.synchronize()


def _unmap(driver: CudaDriver, device: int, context: int, address: int, size: int) -> None:
    driver.set_current_context(context)
    try:
        driver.synchronize()
    finally:
        # Even after an error of the device, which every later call reports: then it is the process's end that unmaps.
        driver.unmap(address, size)
        driver.release_primary_context(device)
