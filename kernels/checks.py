"""Checks of arguments at the facade: ValueError names the argument, and kernels never re-check."""

import torch
from torch import Tensor

from .metadata import AttentionMetadata

__all__ = ["check_attention_bounds", "check_cache", "check_heads", "check_slot_bounds"]

_CACHE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_cache(key_cache: Tensor, value_cache: Tensor) -> None:
    """Two equal [num_blocks, num_kv_heads, block_size, head_dim], the inner two dimensions contiguous."""
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        if cache.dtype not in _CACHE_DTYPES:
            raise ValueError(f"{name} must be float32, bfloat16 or float16, not {cache.dtype}")
        if cache.dim() != 4:
            raise ValueError(
                f"{name} must be [num_blocks, num_kv_heads, block_size, head_dim], not {list(cache.shape)}"
            )
        if cache.stride(3) != 1 or cache.stride(2) != cache.shape[3]:
            raise ValueError(f"{name} must be contiguous in its inner two dimensions, strides {cache.stride()}")
        if cache.shape != key_cache.shape or cache.dtype != key_cache.dtype or cache.device != key_cache.device:
            raise ValueError(
                f"{name} is {cache.dtype} {list(cache.shape)} on {cache.device}, "
                f"key_cache {key_cache.dtype} {list(key_cache.shape)} on {key_cache.device}"
            )


def check_heads(name: str, tensor: Tensor, num_tokens: int, num_heads: int | None, key_cache: Tensor) -> None:
    """[num_tokens, heads, head_dim] in the cache's dtype and device, last dimension contiguous."""
    shape = tensor.shape
    head_dim = key_cache.shape[3]
    if len(shape) != 3 or shape[0] != num_tokens or shape[2] != head_dim or num_heads not in (None, shape[1]):
        heads = "num_heads" if num_heads is None else num_heads
        raise ValueError(f"{name} must be [{num_tokens}, {heads}, {head_dim}], not {list(shape)}")
    if tensor.dtype != key_cache.dtype:
        raise ValueError(f"{name} is {tensor.dtype}, key_cache {key_cache.dtype}")
    if tensor.device != key_cache.device:
        raise ValueError(f"{name} is on {tensor.device}, key_cache on {key_cache.device}")
    if tensor.stride(2) != 1 and head_dim > 1:
        raise ValueError(f"{name} must be contiguous in its last dimension")
    if num_heads is None and (shape[1] == 0 or shape[1] % key_cache.shape[1]):
        raise ValueError(f"{name} has {shape[1]} heads, not a multiple of key_cache's {key_cache.shape[1]}")


def check_slot_bounds(slot_mapping: Tensor, num_slots: int) -> None:
    """Every slot lies in the pool. For the torch implementation on CPU; the native one checks in C++."""
    if slot_mapping.numel() and (int(slot_mapping.min()) < 0 or int(slot_mapping.max()) >= num_slots):
        raise ValueError(f"slot_mapping has a slot outside [0, {num_slots})")


def check_attention_bounds(
    metadata: AttentionMetadata, num_blocks: int, block_size: int, sliding_window: int | None
) -> None:
    """Lengths agree with each other and every block that will be read exists. As check_slot_bounds."""
    query_start, context_lens = metadata.lengths()
    if query_start[0] != 0 or query_start[-1] != metadata.num_tokens:
        raise ValueError(f"query_start must lead from 0 to {metadata.num_tokens}")
    for sequence, context_len in enumerate(context_lens):
        query_len = query_start[sequence + 1] - query_start[sequence]
        if query_len < 0:
            raise ValueError(f"query_start falls at sequence {sequence}")
        if query_len == 0:
            continue
        if context_len < query_len:
            raise ValueError(f"context_lens[{sequence}] is {context_len}, less than its {query_len} new tokens")
        last = (context_len + block_size - 1) // block_size
        if last > metadata.block_tables.shape[1]:
            raise ValueError(f"context_lens[{sequence}] is {context_len}, beyond its row of block_tables")
        first_key = 0 if sliding_window is None else max(0, context_len - query_len - sliding_window + 1)
        needed = metadata.block_tables[sequence, first_key // block_size : last]
        if int(needed.min()) < 0 or int(needed.max()) >= num_blocks:
            raise ValueError(f"block_tables[{sequence}] has a block outside [0, {num_blocks})")
