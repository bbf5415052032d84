"""SwiGLU's gate: silu(gate) * up."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch

__all__ = ["silu_and_mul"]

# Of one program, at 8 elements a thread: one load of 128 bits for each half in a narrow type.
_BLOCK = 1024


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """As `activation.silu_and_mul`. Limit: bytes moved / memory bandwidth, 3 * rows * size elements."""
    size = gate_up.shape[-1] // 2
    output = torch.empty((*gate_up.shape[:-1], size), dtype=gate_up.dtype, device=gate_up.device)
    if output.numel() == 0:
        return output
    rows = gate_up.reshape(-1, 2 * size)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    grid = (len(rows), triton.cdiv(size, _BLOCK))
    launch(_gate, grid, rows, rows.stride(0), output, num_warps=4, SIZE=size, BLOCK=_BLOCK)
    return output


@triton.jit
def _gate(gate_up, row_stride, output, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < SIZE
    gate = tl.load(gate_up + row * row_stride + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * row_stride + SIZE + columns, mask=inside, other=0.0).to(tl.float32)
    # torch's: rounded to the model's type between the two.
    gated = (gate / (1.0 + tl.exp(-gate))).to(output.dtype.element_ty).to(tl.float32)
    tl.store(output + row * SIZE + columns, (gated * up).to(output.dtype.element_ty), mask=inside)
