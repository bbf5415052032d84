"""Checks of arguments at the facade: ValueError names the argument, and kernels never re-check."""

import torch
from torch import Tensor

from .cache import SCALED_DTYPES, Cache, QuantizedCache, elements
from .metadata import AttentionMetadata

__all__ = ["FLOAT_DTYPES", "check_attention_bounds", "check_cache", "check_heads", "check_slot_bounds", "check_slots"]

#: Of activations, and of a cache without scales.
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_cache(key_cache: Cache, value_cache: Cache) -> None:
    """Two equal caches, as `attention.store_kv` describes them."""
    keys = elements(key_cache)
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        tensor = elements(cache)
        if isinstance(cache, QuantizedCache):
            _check_scales(name, cache)
        elif tensor.dtype not in FLOAT_DTYPES:
            raise ValueError(f"{name} must be float32, bfloat16 or float16, or a QuantizedCache, not {tensor.dtype}")
        if tensor.dim() != 4:
            raise ValueError(
                f"{name} must be [num_blocks, num_kv_heads, block_size, head_dim], not {list(tensor.shape)}"
            )
        if tensor.stride(3) != 1 or tensor.stride(2) != tensor.shape[3]:
            raise ValueError(f"{name} must be contiguous in its inner two dimensions, strides {tensor.stride()}")
        if tensor.shape != keys.shape or tensor.dtype != keys.dtype or tensor.device != keys.device:
            raise ValueError(
                f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}, "
                f"key_cache {keys.dtype} {list(keys.shape)} on {keys.device}"
            )


def _check_scales(name: str, cache: QuantizedCache) -> None:
    data, scales = cache
    if data.dtype not in SCALED_DTYPES or scales.dtype != torch.float32:
        raise ValueError(
            f"{name} must be int8 or float8_e4m3fn with float32 scales, not {data.dtype} with {scales.dtype}"
        )
    if scales.shape != data.shape[:3] or scales.device != data.device or scales.stride(2) != 1:
        raise ValueError(
            f"{name} has scales {list(scales.shape)} of strides {scales.stride()} on {scales.device} "
            f"for {list(data.shape)} on {data.device}"
        )


def check_heads(name: str, tensor: Tensor, num_tokens: int, num_heads: int | None, key_cache: Cache) -> None:
    """[num_tokens, heads, head_dim] on the cache's device, last dimension contiguous."""
    shape, keys = tensor.shape, elements(key_cache)
    head_dim = keys.shape[3]
    if len(shape) != 3 or shape[0] != num_tokens or shape[2] != head_dim or num_heads not in (None, shape[1]):
        heads = "num_heads" if num_heads is None else num_heads
        raise ValueError(f"{name} must be [{num_tokens}, {heads}, {head_dim}], not {list(shape)}")
    if tensor.dtype not in FLOAT_DTYPES:
        raise ValueError(f"{name} must be float32, bfloat16 or float16, not {tensor.dtype}")
    if tensor.device != keys.device:
        raise ValueError(f"{name} is on {tensor.device}, key_cache on {keys.device}")
    if tensor.stride(2) != 1 and head_dim > 1:
        raise ValueError(f"{name} must be contiguous in its last dimension")
    if num_heads is None and (shape[1] == 0 or shape[1] % keys.shape[1]):
        raise ValueError(f"{name} has {shape[1]} heads, not a multiple of key_cache's {keys.shape[1]}")


def check_slots(slot_mapping: Tensor, key_cache: Cache) -> None:
    """int64 [num_tokens] on the cache's device."""
    if slot_mapping.dtype != torch.int64 or slot_mapping.dim() != 1 or not slot_mapping.is_contiguous():
        raise ValueError(f"slot_mapping must be contiguous int64 [num_tokens], not {slot_mapping.dtype}")
    if slot_mapping.device != elements(key_cache).device:
        raise ValueError(f"slot_mapping is on {slot_mapping.device}, key_cache on {elements(key_cache).device}")


def check_slot_bounds(slot_mapping: Tensor, num_slots: int) -> None:
    """Every slot lies in the pool, or is -1. For the torch implementation on CPU; the native one checks in C++."""
    if slot_mapping.numel() and (int(slot_mapping.min()) < -1 or int(slot_mapping.max()) >= num_slots):
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
        if query_len == 0 or context_len == 0:  # the second pads a step
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
