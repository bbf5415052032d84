"""The cache's write, and what it shares with `rotary_store.py`: the arguments of a cache, and 8 bits with a scale."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..cache import Cache, QuantizedCache, elements, highest_step
from .launch import launch

__all__ = ["HEADS", "cache_arguments", "highest_of", "magnitude", "put", "scale_of", "store_kv"]

#: Heads of one program: of 128 elements and with 4 warps, 8 elements a thread, 128 bits in a narrow type.
HEADS = 8


def store_kv(key: Tensor, value: Tensor, key_cache: Cache, value_cache: Cache, slot_mapping: Tensor) -> None:
    """As `attention.store_kv`, unchecked; a slot of -1 is passed over.

    Limit: bytes moved / memory bandwidth: keys and values are read once in their type and written once in the
    cache's.
    """
    _, num_kv_heads, block_size, head_dim = elements(key_cache).shape
    tiles = triton.cdiv(num_kv_heads, HEADS)
    columns = triton.next_power_of_2(head_dim)
    launch(
        _store_heads,
        (len(slot_mapping), 2 * tiles),
        key,
        key.stride(0),
        key.stride(1),
        value,
        value.stride(0),
        value.stride(1),
        slot_mapping,
        *cache_arguments(key_cache),
        *cache_arguments(value_cache),
        num_warps=min(max(HEADS * columns // 256, 1), 16),
        HIGHEST=highest_of(key_cache),
        KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        TILES=tiles,
        HEADS=HEADS,
        COLUMNS=columns,
    )


def cache_arguments(cache: Cache) -> tuple[Tensor, int, int, Tensor | None, int, int]:
    """A cache as kernels take it: elements, strides of blocks and heads, and the same of its scales, if it has them."""
    data = elements(cache)
    if not isinstance(cache, QuantizedCache):
        return data, data.stride(0), data.stride(1), None, 0, 0
    return data, data.stride(0), data.stride(1), cache.scales, cache.scales.stride(0), cache.scales.stride(1)


def highest_of(cache: Cache) -> float:
    """What the highest magnitude of a head becomes; 0 if the cache has no scales."""
    return highest_step(cache.data.dtype) if isinstance(cache, QuantizedCache) else 0.0


@triton.jit
def magnitude(x):
    """|x|, and infinity for nan, which a maximum would pass over."""
    return tl.where(tl.abs(x) < float("inf"), tl.abs(x), float("inf"))


@triton.jit
def scale_of(highest, HIGHEST: tl.constexpr):
    """`cache.quantize`'s scales of heads, from the highest `magnitude` of each."""
    scales = tl.div_rn(highest, HIGHEST)
    return tl.where(scales < float("inf"), scales, float("nan"))


@triton.jit
def put(cache, at, inside, x, scales, HIGHEST: tl.constexpr):
    """Writes elements x, float32 or narrower, in the cache's type: `cache.quantize`d if it has scales (HIGHEST > 0)."""
    dtype = cache.dtype.element_ty
    if HIGHEST > 0:
        # A scale of 0 or nan leaves zeros; a subnormal one may have been rounded down.
        x = tl.where(scales > 0, tl.div_rn(x.to(tl.float32), scales), 0.0)
        x = tl.minimum(tl.maximum(x, -HIGHEST), HIGHEST)
        if dtype == tl.int8:
            # To nearest, ties to even, by the addition itself: from 2 ** 23 on, floats are whole numbers.
            x = (x + 12582912.0) - 12582912.0
    tl.store(cache + at, x.to(dtype), mask=inside)


@triton.jit
def _store_heads(
    key,
    key_stride,
    key_head_stride,
    value,
    value_stride,
    value_head_stride,
    slot_mapping,
    keys,
    keys_block,
    keys_head,
    key_scales,
    key_scales_block,
    key_scales_head,
    values,
    values_block,
    values_head,
    value_scales,
    value_scales_block,
    value_scales_head,
    HIGHEST: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILES: tl.constexpr,
    HEADS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Some heads of one token's keys, or of its values."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token)
    tile = tl.program_id(1)
    if slot >= 0:
        if tile < TILES:
            _store_tile(
                key + token * key_stride,
                key_head_stride,
                keys,
                keys_block,
                keys_head,
                key_scales,
                key_scales_block,
                key_scales_head,
                slot,
                tile,
                HIGHEST,
                KV_HEADS,
                HEAD_DIM,
                BLOCK_SIZE,
                HEADS,
                COLUMNS,
            )
        else:
            _store_tile(
                value + token * value_stride,
                value_head_stride,
                values,
                values_block,
                values_head,
                value_scales,
                value_scales_block,
                value_scales_head,
                slot,
                tile - TILES,
                HIGHEST,
                KV_HEADS,
                HEAD_DIM,
                BLOCK_SIZE,
                HEADS,
                COLUMNS,
            )


@triton.jit
def _store_tile(
    new,
    new_head,
    cache,
    cache_block,
    cache_head,
    scales,
    scales_block,
    scales_head,
    slot,
    tile,
    HIGHEST: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    heads = tile * HEADS + tl.arange(0, HEADS)
    columns = tl.arange(0, COLUMNS)[None, :]
    real = heads < KV_HEADS
    inside = real[:, None] & (columns < HEAD_DIM)
    block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
    x = tl.load(new + heads[:, None] * new_head + columns, mask=inside, other=0.0)
    scale = tl.zeros([HEADS], tl.float32)
    if HIGHEST > 0:
        scale = scale_of(tl.max(magnitude(x.to(tl.float32)), axis=1), HIGHEST)
        tl.store(scales + block * scales_block + heads * scales_head + offset, scale, mask=real)
    at = block * cache_block + heads[:, None] * cache_head + offset * HEAD_DIM + columns
    put(cache, at, inside, x, scale[:, None], HIGHEST)
