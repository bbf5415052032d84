"""The native paged attention and KV writes: tensors in, one C call each."""

from ctypes import byref

import torch
from torch import Tensor

from .metadata import AttentionMetadata
from .native_library import AttentionArgs, StoreArgs, call

__all__ = ["paged_attention", "store_kv"]

#: quire_dtype of native/quire_kernels.h.
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int | None,
) -> Tensor:
    """As `attention.paged_attention`, shapes checked there; lengths and blocks in C++."""
    output = torch.empty(query.shape, dtype=query.dtype)
    num_blocks, num_kv_heads, block_size, head_dim = key_cache.shape
    args = AttentionArgs(
        query.data_ptr(),
        output.data_ptr(),
        key_cache.data_ptr(),
        value_cache.data_ptr(),
        metadata.query_start.data_ptr(),
        metadata.context_lens.data_ptr(),
        metadata.block_tables.data_ptr(),
        query.stride(0),
        query.stride(1),
        key_cache.stride(0),
        key_cache.stride(1),
        value_cache.stride(0),
        value_cache.stride(1),
        metadata.block_tables.stride(0),
        num_blocks,
        sliding_window or 0,
        query.shape[0],
        metadata.num_seqs,
        metadata.block_tables.shape[1],
        query.shape[1],
        num_kv_heads,
        head_dim,
        block_size,
        _dtype(key_cache),
        scale,
    )
    call("quire_paged_attention", byref(args))
    return output


def store_kv(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
    """As `attention.store_kv`, shapes checked there; slots in C++."""
    num_blocks, num_kv_heads, block_size, head_dim = key_cache.shape
    args = StoreArgs(
        key.data_ptr(),
        value.data_ptr(),
        key_cache.data_ptr(),
        value_cache.data_ptr(),
        slot_mapping.data_ptr(),
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        key_cache.stride(0),
        key_cache.stride(1),
        value_cache.stride(0),
        value_cache.stride(1),
        num_blocks,
        key.shape[0],
        num_kv_heads,
        head_dim,
        block_size,
        _dtype(key_cache),
    )
    call("quire_store_kv", byref(args))


def _dtype(key_cache: Tensor) -> int:
    if key_cache.dtype not in _DTYPES:
        raise ValueError(f"key_cache is {key_cache.dtype}: the native kernels take float32 and bfloat16")
    return _DTYPES[key_cache.dtype]
