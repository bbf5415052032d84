"""The product with a matrix in FP8 (e4m3): inputs are quantised on the way, with one scale for each token.

Micikevicius et al., FP8 Formats for Deep Learning, arXiv:2209.05433.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .linear import product

__all__ = ["fp8_linear", "quantize_rows"]

# The largest number of e4m3.
_MAX: Final = tl.constexpr(448.0)
_BLOCK: Final = 4096


@triton.jit
def _quantize(x, quantized, scales, inputs, x_stride, BLOCK: tl.constexpr):
    """One row: its largest magnitude becomes 448."""
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    quantized += row * inputs
    largest = tl.zeros([BLOCK], tl.float32)
    for start in range(0, inputs, BLOCK):
        place = start + tl.arange(0, BLOCK)
        values = tl.load(x + place, mask=place < inputs, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(values))
    scale = tl.div_rn(tl.max(largest, axis=0), _MAX)
    tl.store(scales + row, scale)
    divisor = tl.full([BLOCK], 1.0, tl.float32) * tl.where(scale > 0.0, scale, 1.0)  # a row of zeros has the scale 0
    for start in range(0, inputs, BLOCK):
        place = start + tl.arange(0, BLOCK)
        values = tl.load(x + place, mask=place < inputs, other=0.0).to(tl.float32)
        # What rounding has lifted above the largest number would be NaN.
        values = tl.clamp(tl.div_rn(values, divisor), -_MAX, _MAX, propagate_nan=tl.PropagateNan.ALL)
        tl.store(quantized + place, values.to(tl.float8e4nv), mask=place < inputs)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """As `fp8_weight.quantize_fp8`, in one launch.

    Limit: x read twice (the second time from a cache) and written once in one byte an element, over the bandwidth.

    Args:
        x: [rows, n], bfloat16, float16 or float32, with contiguous rows.

    Returns:
        float8_e4m3fn [rows, n] and float32 [rows]: elements and scales.
    """
    quantized = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(len(x), dtype=torch.float32, device=x.device)
    if len(x):
        block = min(_BLOCK, triton.next_power_of_2(x.shape[1]))
        launch(_quantize, (len(x),), x, quantized, scales, x.shape[1], x.stride(0), num_warps=8, BLOCK=block)
    return quantized, scales


def fp8_linear(x: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply by the transposed weight: x @ (weight · scales).T + bias.

    Sums of products of FP8 numbers are float32, and scaled at the end. Limit: as `linear`'s, with weights of one byte, and twice the rate of the matrix units.

    Args:
        x: [..., in_features], bfloat16, float16 or float32.
        weight: float8_e4m3fn [out_features, in_features], contiguous.
        weight_scales: float32 [out_features].
        bias: [out_features] or None.

    Returns:
        [..., out_features], of x's type.
    """
    rows = x.reshape(-1, x.shape[-1])
    quantized, scales = quantize_rows(rows if rows.stride(1) == 1 else rows.contiguous())
    y = product(quantized, weight, bias, x.dtype, (scales, weight_scales))
    return y.view(*x.shape[:-1], len(weight))
