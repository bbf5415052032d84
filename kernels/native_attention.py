"""The native paged attention and KV writes: tensors in, one C call each."""

from ctypes import byref

import torch
from torch import Tensor

from .cache import Cache, QuantizedCache, elements
from .metadata import AttentionMetadata
from .native_library import AttentionArgs, CacheArgs, RotateArgs, StoreArgs, call

__all__ = ["attention_args", "cache_args", "paged_attention", "rotate_and_store", "store_kv"]

#: quire_dtype of native/quire_kernels.h.
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


def paged_attention(
    query: Tensor,
    key_cache: Cache,
    value_cache: Cache,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int | None,
) -> Tensor:
    """As `attention.paged_attention`, shapes checked there; lengths and blocks in C++."""
    output = torch.empty(query.shape, dtype=query.dtype)
    args = attention_args(query, output, key_cache, value_cache, metadata, scale, sliding_window)
    call("quire_paged_attention", byref(args))
    return output


def attention_args(
    query: Tensor,
    output: Tensor,
    key_cache: Cache,
    value_cache: Cache,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int | None,
) -> AttentionArgs:
    """One layer's attention for C. Its tensors must outlive the result."""
    return AttentionArgs(
        cache_args(key_cache, value_cache),
        query.data_ptr(),
        output.data_ptr(),
        metadata.query_start.data_ptr(),
        metadata.context_lens.data_ptr(),
        metadata.block_tables.data_ptr(),
        query.stride(0),
        query.stride(1),
        metadata.block_tables.stride(0),
        sliding_window or 0,
        query.shape[0],
        metadata.num_seqs,
        metadata.block_tables.shape[1],
        query.shape[1],
        _dtype("query", query),
        scale,
    )


def store_kv(key: Tensor, value: Tensor, key_cache: Cache, value_cache: Cache, slot_mapping: Tensor) -> None:
    """As `attention.store_kv`, shapes checked there; slots in C++."""
    args = StoreArgs(
        cache_args(key_cache, value_cache),
        key.data_ptr(),
        value.data_ptr(),
        slot_mapping.data_ptr(),
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        key.shape[0],
        _dtype("key", key),
    )
    call("quire_store_kv", byref(args))


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
    """As `rotary_store.rotate_and_store`, shapes checked there; slots in C++."""
    _, num_kv_heads, _, head_dim = elements(key_cache).shape
    args = RotateArgs(
        cache_args(key_cache, value_cache),
        qkv.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        None if q_norm is None else q_norm.data_ptr(),
        None if k_norm is None else k_norm.data_ptr(),
        slot_mapping.data_ptr(),
        qkv.stride(0),
        qkv.shape[0],
        qkv.shape[1] // head_dim - 2 * num_kv_heads,
        2 * cos.shape[1],
        eps,
    )
    call("quire_rotate_and_store", byref(args))


def cache_args(key_cache: Cache, value_cache: Cache) -> CacheArgs:
    """One layer's cache for C. Its tensors must outlive the result."""
    keys, values = elements(key_cache), elements(value_cache)
    num_blocks, num_kv_heads, block_size, head_dim = keys.shape
    args = CacheArgs(
        key=keys.data_ptr(),
        value=values.data_ptr(),
        key_block_stride=keys.stride(0),
        key_head_stride=keys.stride(1),
        value_block_stride=values.stride(0),
        value_head_stride=values.stride(1),
        num_blocks=num_blocks,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        dtype=_dtype("key_cache", keys),
    )
    if isinstance(key_cache, QuantizedCache) and isinstance(value_cache, QuantizedCache):
        args.key_scales, args.value_scales = key_cache.scales.data_ptr(), value_cache.scales.data_ptr()
        args.key_scale_block_stride, args.key_scale_head_stride = key_cache.scales.stride()[:2]
        args.value_scale_block_stride, args.value_scale_head_stride = value_cache.scales.stride()[:2]
    return args


def _dtype(name: str, tensor: Tensor) -> int:
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"{name} is {tensor.dtype}: the native kernels take float32 and bfloat16")
    return _DTYPES[tensor.dtype]
