"""How a kernel is launched: the options that all of them share, in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["launch"]

Grid = tuple[int, ...] | Callable[[dict[str, Any]], tuple[int, ...]]


def launch(kernel: Any, grid: Grid, *args: Any, num_warps: int, num_stages: int = 2, **constants: Any) -> None:
    """Launches a kernel on the current stream, and does not wait for it.

    Multiplications and additions are not contracted: where two kernels compute the same expression, as a fused one and
    the one that it replaces do, they must round alike, and contraction depends on what stands around it. Products of
    matrices (`tl.dot`) are not affected.

    Args:
        kernel: a function under `triton.jit`.
        grid: the number of programs along up to three axes, or how it follows from the constants.
        args: what the kernel takes, in order; tensors become pointers.
        num_warps: of 32 threads each, for one program.
        num_stages: of the software pipeline in the kernel's loops.
        constants: its `tl.constexpr` parameters.
    """
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": False}
    _run(kernel, grid, args, constants | options)


def _run(kernel: Any, grid: Grid, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Apart, so that a test can compile a launch for a GPU that it does not have."""
    kernel[grid](*args, **keywords)
