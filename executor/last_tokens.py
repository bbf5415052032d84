"""The token that was sampled last for each slot, kept where the next step reads it: on the device."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from quire.executor.device import AsyncDevice

_SLOTS: Final = 64


class LastTokens:
    """int32 [slots], written and read by submitted work alone, in the order of the steps."""

    def __init__(self, device: AsyncDevice) -> None:
        self._device = device
        self._table = self._allocate(_SLOTS)

    def reserve(self, num_slots: int) -> None:
        """Makes room for as many slots, for work that is submitted from now on."""
        if num_slots <= len(self._table):
            return
        smaller, larger = self._table, self._allocate(max(num_slots, 2 * len(self._table)))

        def move() -> None:
            larger[: len(smaller)] = smaller

        self._device.submit(move)
        self._table = larger

    def table(self) -> Tensor:
        """For work that is submitted before the next `reserve`."""
        return self._table

    def _allocate(self, num_slots: int) -> Tensor:
        return self._device.device_memory(4 * num_slots).view(torch.int32)
