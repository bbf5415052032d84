"""Which implementation runs an operator, and what its numbers are called."""

import importlib.util
from functools import cache
from typing import Literal, get_args

import torch

__all__ = [
    "NUMERICS_VERSION",
    "Implementation",
    "batch_invariant",
    "implementation_for",
    "set_batch_invariant",
    "set_implementation",
]

#: Changes whenever a kernel's results change in any bit. Together with `current_isa()` it says whether KV
#: written by one build may be continued by another with the same tokens.
NUMERICS_VERSION = 3

Implementation = Literal["native", "triton", "torch"]

_forced: Implementation | None = None
_batch_invariant = True


def set_implementation(name: Implementation | None) -> None:
    """Force "native", "triton" or "torch" for the whole process; None (the start) chooses by device.

    "triton" on a CPU needs Triton's interpreter (TRITON_INTERPRET=1 before the first import).

    Raises:
        ValueError: for any other name.
    """
    global _forced
    if name is not None and name not in get_args(Implementation):
        raise ValueError(f"implementation must be one of {', '.join(get_args(Implementation))} or None, not {name!r}")
    _forced = name


def implementation_for(device: torch.device) -> Implementation:
    """The implementation that tensors on `device` get, unless forced: native on a CPU, Triton on a GPU, else torch.

    An operator without a kernel in Triton is torch's there.
    """
    if _forced is not None:
        return _forced
    if device.type == "cpu":
        return "native"
    return "triton" if device.type == "cuda" and _has_triton() else "torch"


def set_batch_invariant(on: bool) -> None:
    """Whether the sums of a product on a GPU have one order (the start), or torch may choose by the number of rows."""
    global _batch_invariant
    _batch_invariant = on


def batch_invariant() -> bool:
    """As `set_batch_invariant` has set it."""
    return _batch_invariant


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
