"""Which implementation runs an operator, and what its numbers are called."""

from typing import Literal

import torch

__all__ = ["NUMERICS_VERSION", "Implementation", "implementation_for", "set_implementation"]

#: Changes whenever a kernel's results change in any bit. Together with `current_isa()` it says whether KV
#: written by one build may be continued by another with the same tokens.
NUMERICS_VERSION = 3

Implementation = Literal["native", "torch"]

_forced: Implementation | None = None


def set_implementation(name: Implementation | None) -> None:
    """Force "native" or "torch" for the whole process; None (the start) chooses by device.

    Raises:
        ValueError: for any other name.
    """
    global _forced
    if name not in ("native", "torch", None):
        raise ValueError(f"implementation must be 'native', 'torch' or None, not {name!r}")
    _forced = name


def implementation_for(device: torch.device) -> Implementation:
    """The implementation that tensors on `device` get: native on a CPU, torch elsewhere, unless forced."""
    return _forced or ("native" if device.type == "cpu" else "torch")
