"""One layer's keys or values in the paged cache."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Cache", "QuantizedCache", "dequantize", "elements", "quantize"]


class QuantizedCache(NamedTuple):
    """Keys or values in int8, with one scale for each token and head.

    Attributes:
        data: int8 [num_blocks, num_kv_heads, block_size, head_dim], the inner two dimensions contiguous.
        scales: float32 [num_blocks, num_kv_heads, block_size], the inner dimension contiguous. An element is its
            integer times its scale.
    """

    data: Tensor
    scales: Tensor


#: [num_blocks, num_kv_heads, block_size, head_dim] in the cache's own type.
Cache = Tensor | QuantizedCache


def elements(cache: Cache) -> Tensor:
    """The tensor of the cache's elements, without scales."""
    return cache.data if isinstance(cache, QuantizedCache) else cache


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 over the last dimension: scale = highest magnitude / 127, integers to nearest, ties to even.

    A vector that holds inf or nan gets a scale of nan and zeros: in 8 bits it could not be told, and whoever
    reads it shall see it.

    Args:
        x: [..., size], any floating dtype.

    Returns:
        (int8 [..., size], float32 [...]).
    """
    wide = x.float()
    scales = wide.abs().amax(dim=-1) / 127
    scales = torch.where(scales.isfinite(), scales, torch.nan)
    # A scale of 0 (all zeros, or too small for one) leaves zeros; a subnormal one may have been rounded down.
    integers = torch.where((scales > 0).unsqueeze(-1), wide / scales.unsqueeze(-1), 0.0).round().clamp(-127, 127)
    return integers.to(torch.int8), scales


def dequantize(cache: Cache) -> Tensor:
    """The cache's elements in float32, [num_blocks, num_kv_heads, block_size, head_dim]."""
    if isinstance(cache, QuantizedCache):
        return cache.data.float() * cache.scales.unsqueeze(-1)
    return cache.float()
