"""One layer's keys or values in the paged cache."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["SCALED_DTYPES", "Cache", "QuantizedCache", "dequantize", "elements", "highest_step", "quantize"]

#: Types of a QuantizedCache.
SCALED_DTYPES = (torch.int8, torch.float8_e4m3fn)


class QuantizedCache(NamedTuple):
    """Keys or values in 8 bits, with one scale for each token and head.

    Attributes:
        data: int8 or float8_e4m3fn [num_blocks, num_kv_heads, block_size, head_dim], the inner two dimensions
            contiguous.
        scales: float32 [num_blocks, num_kv_heads, block_size], the inner dimension contiguous. An element is its
            number in `data` times its scale.
    """

    data: Tensor
    scales: Tensor


#: [num_blocks, num_kv_heads, block_size, head_dim] in the cache's own type.
Cache = Tensor | QuantizedCache


def elements(cache: Cache) -> Tensor:
    """The tensor of the cache's elements, without scales."""
    return cache.data if isinstance(cache, QuantizedCache) else cache


def highest_step(dtype: torch.dtype) -> float:
    """What the highest magnitude of a vector becomes: 127 in int8, 448 in float8_e4m3fn."""
    return 127.0 if dtype == torch.int8 else torch.finfo(dtype).max


def quantize(x: Tensor, dtype: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """Symmetric over the last dimension: scale = highest magnitude / `highest_step`; to nearest, ties to even.

    FP8 is E4M3 of Micikevicius et al. (arXiv 2209.05433). A vector that holds inf or nan gets a scale of nan and
    zeros: in 8 bits it could not be told, and whoever reads it shall see it.

    Args:
        x: [..., size], any floating dtype.
        dtype: one of SCALED_DTYPES.

    Returns:
        (dtype [..., size], float32 [...]).
    """
    wide, highest = x.float(), highest_step(dtype)
    scales = wide.abs().amax(dim=-1) / highest
    scales = torch.where(scales.isfinite(), scales, torch.nan)
    # A scale of 0 (all zeros, or too small for one) leaves zeros; a subnormal one may have been rounded down.
    steps = torch.where((scales > 0).unsqueeze(-1), wide / scales.unsqueeze(-1), 0.0).clamp(-highest, highest)
    return (steps.round() if dtype == torch.int8 else steps).to(dtype), scales


def dequantize(cache: Cache) -> Tensor:
    """The cache's elements in float32, [num_blocks, num_kv_heads, block_size, head_dim]."""
    if isinstance(cache, QuantizedCache):
        return cache.data.float() * cache.scales.unsqueeze(-1)
    return cache.float()
