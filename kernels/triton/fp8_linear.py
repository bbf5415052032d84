"""The product with a matrix in FP8 (e4m3): inputs are quantised on the way, with one scale for each token.

Micikevicius et al., FP8 Formats for Deep Learning, arXiv:2209.05433.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cache import highest_step
from ..fp8_weight import FP8, Fp8Weight
from .cache_store import magnitude, put, scale_of
from .launch import launch
from .linear import product

__all__ = ["fp8_linear", "quantize_rows"]

_BLOCK: Final = 4096


@triton.jit
def _quantize(x, quantized, scales, inputs, x_stride, HIGHEST: tl.constexpr, BLOCK: tl.constexpr):
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    quantized += row * inputs
    highest = tl.zeros([BLOCK], tl.float32)
    for start in range(0, inputs, BLOCK):
        place = start + tl.arange(0, BLOCK)
        values = tl.load(x + place, mask=place < inputs, other=0.0).to(tl.float32)
        highest = tl.maximum(highest, magnitude(values))
    scale = scale_of(tl.max(highest, axis=0), HIGHEST)
    tl.store(scales + row, scale)
    for start in range(0, inputs, BLOCK):
        place = start + tl.arange(0, BLOCK)
        values = tl.load(x + place, mask=place < inputs, other=0.0).to(tl.float32)
        put(quantized, place, place < inputs, values, scale, HIGHEST)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """As `cache.quantize` in FP8, in one launch.

    Limit: x read twice (the second time from a cache) and written once in one byte an element, over the bandwidth.

    Args:
        x: [rows, n], bfloat16, float16 or float32, with contiguous rows.

    Returns:
        float8_e4m3fn [rows, n] and float32 [rows]: elements and scales.
    """
    quantized = torch.empty(x.shape, dtype=FP8, device=x.device)
    scales = torch.empty(len(x), dtype=torch.float32, device=x.device)
    if len(x):
        block = min(_BLOCK, triton.next_power_of_2(x.shape[1]))
        constants = {"HIGHEST": highest_step(FP8), "BLOCK": block}
        launch(_quantize, (len(x),), x, quantized, scales, x.shape[1], x.stride(0), num_warps=8, **constants)
    return quantized, scales


def fp8_linear(x: Tensor, weight: Fp8Weight, bias: Tensor | None = None) -> Tensor:
    """Multiply by the transposed weight: x @ weight.T + bias.

    Sums of products of FP8 numbers are float32, and scaled at the end.
    Limit: as `linear`'s, with weights of one byte and twice the rate of the matrix units.

    Args:
        x: [..., in_features], bfloat16, float16 or float32.
        weight: [out_features, in_features].
        bias: [out_features] or None.

    Returns:
        [..., out_features], of x's type.
    """
    rows = x.reshape(-1, x.shape[-1])
    quantized, scales = quantize_rows(rows if rows.stride(1) == 1 else rows.contiguous())
    y = product(quantized, weight.data, bias, x.dtype, (scales, weight.scales))
    return y.view(*x.shape[:-1], len(weight.data))
