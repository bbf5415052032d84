"""Memory of the executor's device for the KV pool, held by another process for the next executor."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from quire.cuda_driver import CudaError, load_driver
from quire.device_pool.client import HolderClient, NoHolderError
from quire.errors import KvPoolError

logger = logging.getLogger(__name__)


class DeviceMemory:
    """What the process that holds device memory (`quire device-pool`) has for an executor on a GPU."""

    def __init__(self, device: torch.device, holder: Path | None) -> None:
        """`holder` is that process's socket; None: there is none."""
        self._device = device
        self._holder = holder

    def attach(self, epoch: int, num_bytes: int, *, is_new: bool) -> tuple[Tensor, bool] | None:
        """The pool of an epoch, uint8 [num_bytes], and whether it holds what was written to it; else it is zeros.

        None, and a line in the log, where nobody can hold it: the executor has to allocate for itself.
        `is_new`: it must be other memory than before. Raises KvPoolError if it does not fit.
        """
        try:
            memory, has_content = self._client().attach(epoch, num_bytes, is_new=is_new)
        except NoHolderError as error:
            logger.warning("the KV pool will not outlive this executor: %s", error.message)
            return None
        except CudaError as error:
            raise KvPoolError(f"the KV pool cannot be mapped: {error.message}") from error
        pool = torch.as_tensor(memory, device=self._device)
        assert pool.data_ptr() == memory.address, "the KV pool was copied"
        return pool, has_content

    def held_bytes(self) -> int:
        """Of the device's memory, what is held of an earlier pool: free as soon as there is another one."""
        try:
            return self._client().held_bytes()
        except NoHolderError as error:
            logger.debug("no device memory is held: %s", error.message)
            return 0

    def _client(self) -> HolderClient:
        """Raises NoHolderError."""
        if self._holder is None:
            raise NoHolderError("nobody holds its memory (--device-pool)")
        ordinal = torch.cuda.current_device() if self._device.index is None else self._device.index
        try:
            driver = load_driver()
            return HolderClient(self._holder, driver, driver.device(ordinal))
        except CudaError as error:
            raise NoHolderError(error.message) from error
