"""Norms of queries and keys, their rotation and the cache's write, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..cache import Cache, elements
from .cache_store import HEADS, cache_arguments, highest_of, magnitude, put, scale_of
from .launch import launch

__all__ = ["rotate_and_store"]


def rotate_and_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_cache: Cache,
    value_cache: Cache,
    slot_mapping: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
) -> None:
    """As `rotary_store.rotate_and_store`, unchecked; a slot of -1 is passed over.

    Limit: bytes moved / memory bandwidth: queries and keys are read and written where they lie, values are read, and
    keys and values are written once in the cache's type.
    """
    _, num_kv_heads, block_size, head_dim = elements(key_cache).shape
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    half = cos.shape[1]
    columns = triton.next_power_of_2(max(half, 1))
    rest = head_dim - 2 * half
    query_tiles, kv_tiles = triton.cdiv(num_heads, HEADS), triton.cdiv(num_kv_heads, HEADS)
    launch(
        _rotate_heads,
        (len(slot_mapping), query_tiles + 2 * kv_tiles),
        qkv,
        qkv.stride(0),
        cos,
        sin,
        slot_mapping,
        q_norm,
        k_norm,
        eps,
        *cache_arguments(key_cache),
        *cache_arguments(value_cache),
        num_warps=min(max(HEADS * columns // 256, 1), 8),
        HIGHEST=highest_of(key_cache),
        NUM_HEADS=num_heads,
        KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        HALF=half,
        BLOCK_SIZE=block_size,
        QUERY_TILES=query_tiles,
        KV_TILES=kv_tiles,
        HEADS=HEADS,
        COLUMNS=columns,
        REST=triton.next_power_of_2(rest) if rest else 0,
    )


@triton.jit
def _rotate_heads(
    qkv,
    token_stride,
    cos,
    sin,
    slot_mapping,
    q_norm,
    k_norm,
    eps,
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
    NUM_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    QUERY_TILES: tl.constexpr,
    KV_TILES: tl.constexpr,
    HEADS: tl.constexpr,
    COLUMNS: tl.constexpr,
    REST: tl.constexpr,
):
    """Some heads of one token: of its queries, of its keys, or of its values."""
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    slot = tl.load(slot_mapping + token)
    queries = qkv + token * token_stride
    cosines, sines = cos + token * HALF, sin + token * HALF
    if tile < QUERY_TILES:
        _turn(queries, q_norm, eps, cosines, sines, tile, NUM_HEADS, HEAD_DIM, HALF, HEADS, COLUMNS, REST)
    elif tile < QUERY_TILES + KV_TILES:
        tile = tile - QUERY_TILES
        new = queries + NUM_HEADS * HEAD_DIM
        first, second, rest = _turn(
            new, k_norm, eps, cosines, sines, tile, KV_HEADS, HEAD_DIM, HALF, HEADS, COLUMNS, REST
        )
        if slot >= 0:
            _write(
                first,
                second,
                rest,
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
                HALF,
                BLOCK_SIZE,
                HEADS,
                COLUMNS,
                REST,
            )
    elif slot >= 0:
        tile = tile - QUERY_TILES - KV_TILES
        new = queries + (NUM_HEADS + KV_HEADS) * HEAD_DIM
        first, second, rest = _load(new, tile, KV_HEADS, HEAD_DIM, HALF, HEADS, COLUMNS, REST)
        _write(
            first,
            second,
            rest,
            values,
            values_block,
            values_head,
            value_scales,
            value_scales_block,
            value_scales_head,
            slot,
            tile,
            HIGHEST,
            KV_HEADS,
            HEAD_DIM,
            HALF,
            BLOCK_SIZE,
            HEADS,
            COLUMNS,
            REST,
        )


@triton.jit
def _turn(
    x,
    weight,
    eps,
    cosines,
    sines,
    tile,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    COLUMNS: tl.constexpr,
    REST: tl.constexpr,
):
    """Norms and rotates heads where they lie, each operation rounded as torch's; returns their three parts."""
    dtype = x.dtype.element_ty
    first, second, rest = _load(x, tile, NUM_HEADS, HEAD_DIM, HALF, HEADS, COLUMNS, REST)
    columns, tail = tl.arange(0, COLUMNS)[None, :], 2 * HALF + tl.arange(0, REST if REST else 1)[None, :]
    turning = columns < HALF
    heads = tile * HEADS + tl.arange(0, HEADS)[:, None]
    if weight is not None:
        squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
        if REST:
            squares += tl.sum(rest * rest, axis=1)
        factors = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(squares, HEAD_DIM * 1.0) + eps))[:, None]
        first = _scaled(first, factors, tl.load(weight + columns, mask=turning, other=0.0), dtype)
        second = _scaled(second, factors, tl.load(weight + HALF + columns, mask=turning, other=0.0), dtype)
        if REST:
            rest = _scaled(rest, factors, tl.load(weight + tail, mask=tail < HEAD_DIM, other=0.0), dtype)
            tl.store(x + heads * HEAD_DIM + tail, rest.to(dtype), mask=(heads < NUM_HEADS) & (tail < HEAD_DIM))
    cosine = _rounded(tl.load(cosines + columns, mask=turning, other=0.0), dtype)
    sine = _rounded(tl.load(sines + columns, mask=turning, other=0.0), dtype)
    turned_first = _rounded(_rounded(first * cosine, dtype) - _rounded(second * sine, dtype), dtype)
    turned_second = _rounded(_rounded(second * cosine, dtype) + _rounded(first * sine, dtype), dtype)
    at = x + heads * HEAD_DIM + columns
    inside = (heads < NUM_HEADS) & turning
    tl.store(at, turned_first.to(dtype), mask=inside)
    tl.store(at + HALF, turned_second.to(dtype), mask=inside)
    return turned_first, turned_second, rest


@triton.jit
def _load(
    x,
    tile,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    COLUMNS: tl.constexpr,
    REST: tl.constexpr,
):
    """Heads in three parts, float32: the first and the second half of what is rotated, and the rest."""
    heads = tile * HEADS + tl.arange(0, HEADS)[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    at = x + heads * HEAD_DIM + columns
    inside = (heads < NUM_HEADS) & (columns < HALF)
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    rest = first  # not looked at without a rest
    if REST:
        tail = 2 * HALF + tl.arange(0, REST)[None, :]
        inside = (heads < NUM_HEADS) & (tail < HEAD_DIM)
        rest = tl.load(x + heads * HEAD_DIM + tail, mask=inside, other=0.0).to(tl.float32)
    return first, second, rest


@triton.jit
def _write(
    first,
    second,
    rest,
    cache,
    cache_block,
    cache_head,
    scales,
    scales_block,
    scales_head,
    slot,
    tile,
    HIGHEST: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    COLUMNS: tl.constexpr,
    REST: tl.constexpr,
):
    """Heads in three parts → the cache."""
    heads = tile * HEADS + tl.arange(0, HEADS)
    block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
    scale = tl.zeros([HEADS], tl.float32)
    if HIGHEST > 0:
        highest = tl.maximum(tl.max(magnitude(first), axis=1), tl.max(magnitude(second), axis=1))
        if REST:
            highest = tl.maximum(highest, tl.max(magnitude(rest), axis=1))
        scale = scale_of(highest, HIGHEST)
        at_scale = scales + block * scales_block + heads * scales_head + offset
        tl.store(at_scale, scale, mask=heads < NUM_HEADS)
    real = (heads < NUM_HEADS)[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    at = block * cache_block + heads[:, None] * cache_head + offset * HEAD_DIM
    put(cache, at + columns, real & (columns < HALF), first, scale[:, None], HIGHEST)
    put(cache, at + HALF + columns, real & (columns < HALF), second, scale[:, None], HIGHEST)
    if REST:
        tail = 2 * HALF + tl.arange(0, REST)[None, :]
        put(cache, at + tail, real & (tail < HEAD_DIM), rest, scale[:, None], HIGHEST)


@triton.jit
def _scaled(x, factors, weight, dtype: tl.constexpr):
    """RMSNorm's last steps, as `norm.rms_norm` rounds them."""
    return _rounded(_rounded(x * factors, dtype) * weight.to(tl.float32), dtype)


@triton.jit
def _rounded(x, dtype: tl.constexpr):
    """A float32 that the narrower type can hold."""
    return x.to(dtype).to(tl.float32)
