"""Plain torch, clear and slow: what every other implementation is tested against."""

import torch
from torch import Tensor

from .cache import Cache, QuantizedCache, dequantize, elements, quantize
from .fp8_weight import FP8, Fp8Weight
from .metadata import AttentionMetadata
from .native_library import current_isa
from .packed_weight import PackedWeight

__all__ = ["copy_blocks", "fp8_linear", "gather_context", "linear", "paged_attention", "store_kv"]


def linear(x: Tensor, weight: PackedWeight) -> Tensor:
    """As `linear.linear` with a packed weight, in float64 over the values that it stands for."""
    inputs = x.double()
    if weight.format == "int8":
        scales = x.abs().amax(dim=1, keepdim=True) / 127
        inputs = torch.round(x / scales.clamp(min=torch.finfo(torch.float32).tiny)).double() * scales
    elif weight.format == "bfloat16" and current_isa() in ("amx", "avx512_bf16"):
        inputs = x.to(torch.bfloat16).double()  # both sides of their dot products are
    product = inputs @ weight.dequantise().double().T
    return (product if weight.bias is None else product + weight.bias).float()


def fp8_linear(x: Tensor, weight: Fp8Weight, bias: Tensor | None) -> Tensor:
    """As `linear.linear` with a weight in FP8, in float64 over quantised inputs and weights."""
    steps, scales = quantize(x.reshape(-1, x.shape[-1]), FP8)
    product = (steps.double() * scales[:, None].double()) @ weight.dequantise().double().T
    product = product if bias is None else product + bias.double()
    return product.to(x.dtype).view(*x.shape[:-1], -1)


def store_kv(key: Tensor, value: Tensor, key_cache: Cache, value_cache: Cache, slot_mapping: Tensor) -> None:
    """As `attention.store_kv`, one token after the other."""
    block_size = elements(key_cache).shape[2]
    for token, slot in enumerate(slot_mapping.tolist()):
        if slot == -1:
            continue  # padding
        block, offset = divmod(slot, block_size)
        for new, cache in ((key[token], key_cache), (value[token], value_cache)):
            if isinstance(cache, QuantizedCache):
                cache.data[block, :, offset], cache.scales[block, :, offset] = quantize(new, cache.data.dtype)
            else:
                cache[block, :, offset] = new


def copy_blocks(pool: Tensor, sources: Tensor, destinations: Tensor) -> None:
    """As `blocks.copy_blocks`, one block after the other."""
    for source, destination in zip(sources.tolist(), destinations.tolist(), strict=True):
        pool[destination] = pool[source]


def gather_context(cache: Cache, block_table: Tensor, context_len: int) -> Tensor:
    """The first context_len tokens of one sequence, [num_kv_heads, context_len, head_dim], in float32."""
    block_size = elements(cache).shape[2]
    blocks = block_table[: (context_len + block_size - 1) // block_size].long()
    held = (
        QuantizedCache(cache.data[blocks], cache.scales[blocks]) if isinstance(cache, QuantizedCache) else cache[blocks]
    )
    return dequantize(held).transpose(0, 1).flatten(1, 2)[:, :context_len]


def paged_attention(
    query: Tensor,
    key_cache: Cache,
    value_cache: Cache,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int | None = None,
) -> Tensor:
    """As `attention.paged_attention`, with one softmax over each whole context."""
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    group = query.shape[1] // elements(key_cache).shape[1]
    query_start, context_lens = metadata.lengths()
    for sequence, context_len in enumerate(context_lens):
        rows = slice(query_start[sequence], query_start[sequence + 1])
        query_len = rows.stop - rows.start
        if query_len == 0:
            continue
        block_table = metadata.block_tables[sequence]
        key = gather_context(key_cache, block_table, context_len).repeat_interleave(group, dim=0)
        value = gather_context(value_cache, block_table, context_len).repeat_interleave(group, dim=0)
        positions = torch.arange(context_len - query_len, context_len, device=query.device)[:, None]
        keys = torch.arange(context_len, device=query.device)[None, :]
        visible = keys <= positions
        if sliding_window is not None:
            visible &= keys > positions - sliding_window
        scores = query[rows].float().transpose(0, 1) @ key.transpose(1, 2) * scale
        weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
        # A masked value may be garbage: 0 * nan is nan, so what no query sees is cleared.
        value = value.masked_fill(~visible.any(dim=0)[None, :, None], 0.0)
        output[rows] = (weights @ value).transpose(0, 1).to(query.dtype)
    return output
