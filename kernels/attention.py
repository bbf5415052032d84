"""Paged attention and the writes that feed it: the public functions.

PagedAttention: Kwon et al., "Efficient Memory Management for Large Language Model Serving with
PagedAttention" (SOSP 2023, arXiv 2309.06180). The softmax is computed online over tiles of the context, as in
Milakov and Gimelshein (arXiv 1805.02867) and Dao et al., "FlashAttention" (arXiv 2205.14135).
"""

import torch
from torch import Tensor

from . import native_attention, torch_paged
from .backend import implementation_for
from .cache import Cache, elements
from .checks import check_attention_bounds, check_cache, check_heads, check_slot_bounds, check_slots
from .metadata import AttentionMetadata

__all__ = ["paged_attention", "store_kv"]


def store_kv(key: Tensor, value: Tensor, key_cache: Cache, value_cache: Cache, slot_mapping: Tensor) -> None:
    """Write the new tokens' keys and values into their slots, converted to the cache's type.

    To narrower floats is to nearest, ties to even; to 8 bits as `cache.quantize` says, for each token and head.

    Args:
        key: [num_tokens, num_kv_heads, head_dim], float32 or bfloat16 (float16 too where torch runs), last
            dimension contiguous.
        value: as key.
        key_cache: one layer's view of the pool, [num_blocks, num_kv_heads, block_size, head_dim], float32 or
            bfloat16 (float16 too where torch runs), the inner two dimensions contiguous; or a QuantizedCache.
            Written in place.
        value_cache: as key_cache.
        slot_mapping: int64 [num_tokens], block_id * block_size + offset. No slot twice, but for -1: a token that
            pads a step, of which nothing is stored (on a GPU only).

    Raises:
        ValueError: an argument has the wrong dtype, shape, layout or device, or a slot lies outside the
            cache (on a GPU slots are not looked at: that would wait for the device).
    """
    check_cache(key_cache, value_cache)
    check_slots(slot_mapping, key_cache)
    keys = elements(key_cache)
    num_tokens, num_kv_heads = slot_mapping.shape[0], keys.shape[1]
    check_heads("key", key, num_tokens, num_kv_heads, key_cache)
    check_heads("value", value, num_tokens, num_kv_heads, key_cache)
    if value.dtype != key.dtype:
        raise ValueError(f"value is {value.dtype}, key {key.dtype}")
    if num_tokens == 0:
        return
    implementation = implementation_for(keys.device)
    if implementation == "native":
        native_attention.store_kv(key, value, key_cache, value_cache, slot_mapping)
        return
    if implementation == "triton":
        from .triton import cache_store

        cache_store.store_kv(key, value, key_cache, value_cache, slot_mapping)
        return
    if keys.device.type == "cpu":
        check_slot_bounds(slot_mapping, keys.shape[0] * keys.shape[2])
    torch_paged.store_kv(key, value, key_cache, value_cache, slot_mapping)


def paged_attention(
    query: Tensor,
    key_cache: Cache,
    value_cache: Cache,
    metadata: AttentionMetadata,
    *,
    scale: float,
    sliding_window: int | None = None,
) -> Tensor:
    """Causal attention of the new tokens over their sequences' paged context.

    The step's own keys and values must have been stored before (`store_kv`).

    On a CPU (native) a row's result depends on nothing but its query, its position and its context: it is
    equal bit for bit in any batch, on any number of threads, and in a prefill chunk as in a decode step. The same
    holds in Triton on one model of GPU.

    Args:
        query: [num_tokens, num_heads, head_dim], float32 or bfloat16 (float16 too where torch runs), whatever
            the cache's type; num_heads is a multiple of num_kv_heads, and heads g * k up to g * (k + 1) share
            KV head k (g = num_heads / num_kv_heads).
        key_cache: one layer's view of the pool, as in `store_kv`.
        value_cache: as key_cache.
        metadata: the step's sequences.
        scale: factor of the scores, usually head_dim ** -0.5.
        sliding_window: a query at position p attends to keys in (p - sliding_window, p] (as Mistral in
            transformers does); blocks wholly before the window are not read. None: the whole context.

    Returns:
        [num_tokens, num_heads, head_dim] in the query's dtype, contiguous. All sums are float32.

    Raises:
        ValueError: an argument has the wrong dtype, shape, layout or device, or points outside the cache
            (on a GPU the lengths and block ids are not looked at).
    """
    check_cache(key_cache, value_cache)
    check_heads("query", query, metadata.num_tokens, None, key_cache)
    if metadata.slot_mapping.device != query.device:
        raise ValueError(f"metadata is on {metadata.slot_mapping.device}, key_cache on {query.device}")
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window must be at least 1, not {sliding_window}")
    if metadata.num_tokens == 0:
        return torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if implementation_for(query.device) == "native":
        return native_attention.paged_attention(query, key_cache, value_cache, metadata, scale, sliding_window)
    if implementation_for(query.device) == "triton":
        from .triton import attention as triton_attention

        return triton_attention.paged_attention(query, key_cache, value_cache, metadata, scale, sliding_window)
    if query.device.type == "cpu":
        num_blocks, _, block_size, _ = elements(key_cache).shape
        check_attention_bounds(metadata, num_blocks, block_size, sliding_window)
    return torch_paged.paged_attention(query, key_cache, value_cache, metadata, scale, sliding_window)
