"""RMSNorm, and the sum of the residual stream with it, in one pass over memory.

Limit of both: bytes moved / memory bandwidth. A row lies in one program's registers, so each element is read once and
written once; the arithmetic is hidden behind that.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch

__all__ = ["fused_add_rms_norm", "rms_norm"]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `norm.rms_norm`. Moves 2 * rows * size elements."""
    output = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype), device=x.device)
    _launch(x, None, weight, output, None, eps)
    return output


def fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `norm.fused_add_rms_norm`. Moves 4 * rows * size elements."""
    output = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype), device=x.device)
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, residual, weight, output, total, eps)
    return output, total


def _launch(
    x: Tensor, residual: Tensor | None, weight: Tensor, output: Tensor, total: Tensor | None, eps: float
) -> None:
    size = x.shape[-1]
    if x.numel() == 0:
        return
    rows = _rows(x)
    residual_rows = None if residual is None else _rows(residual)
    block = triton.next_power_of_2(size)
    launch(
        _norm_rows,
        (len(rows),),
        rows,
        rows.stride(0),
        residual_rows,
        0 if residual_rows is None else residual_rows.stride(0),
        weight,
        output,
        total,
        eps,
        num_warps=_num_warps(block),
        SIZE=size,
        BLOCK=block,
    )


def _rows(x: Tensor) -> Tensor:
    """[rows, size], rows contiguous: a view wherever strides allow one."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _num_warps(block: int) -> int:
    """Of 8 or 16 elements a thread: one or two loads of 128 bits in a narrow type."""
    return min(max(triton.next_power_of_2(block // 512), 1), 16)


@triton.jit
def _norm_rows(
    x, x_stride, residual, residual_stride, weight, output, total, eps, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    """One row in one program, and one order of its sum, whatever the number of rows."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    kept = tl.load(x + row * x_stride + columns, mask=inside, other=0.0)
    if residual is not None:
        added = tl.load(residual + row * residual_stride + columns, mask=inside, other=0.0)
        # The sum is rounded to the model's type, and it is the rounded one that is normed.
        kept = (added.to(tl.float32) + kept.to(tl.float32)).to(x.dtype.element_ty)
        tl.store(total + row * SIZE + columns, kept, mask=inside)
    wide = kept.to(tl.float32)
    mean = tl.div_rn(tl.sum(wide * wide, axis=0), SIZE * 1.0)
    # Not the hardware's approximate rsqrt: one number a row costs nothing, and this one is the same on all devices.
    factor = tl.div_rn(1.0, tl.sqrt_rn(mean + eps))
    normed = (wide * factor).to(x.dtype.element_ty).to(tl.float32)
    scaled = normed * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + row * SIZE + columns, scaled.to(output.dtype.element_ty), mask=inside)
