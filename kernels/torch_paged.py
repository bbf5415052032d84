"""Paged attention in torch for any device: streams over the block table, never gathers a whole context.

Tiles of queries of equal length are stacked and walk over their contexts together, a chunk of keys at a time,
with an online softmax (Dao et al., "FlashAttention", arXiv 2205.14135). Matrix products are torch's, so
unlike the native kernel's the last bits may depend on the batch.
"""

from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor

from .cache import Cache, QuantizedCache, dequantize, elements, quantize
from .metadata import AttentionMetadata
from .norm import rms_norm
from .rotary import rotary_embedding

__all__ = ["paged_attention", "rotate_and_store", "store_kv"]

# Bounds on one chunk's temporaries: scores take rows * heads * CHUNK_TOKENS floats.
CHUNK_TOKENS = 256
QUERY_TILE = 256
STACKED_QUERIES = 1024


class _Tile(NamedTuple):
    """Consecutive queries of one sequence."""

    sequence: int
    first_row: int
    first_position: int

    def block_range(self, length: int, block_size: int, sliding_window: int | None) -> tuple[int, int]:
        end = self.first_position + length
        start = 0 if sliding_window is None else max(0, self.first_position - sliding_window + 1)
        return start // block_size, (end + block_size - 1) // block_size


def store_kv(key: Tensor, value: Tensor, key_cache: Cache, value_cache: Cache, slot_mapping: Tensor) -> None:
    """As `attention.store_kv`, unchecked."""
    block_size = elements(key_cache).shape[2]
    real = slot_mapping >= 0
    key, value, slot_mapping = key[real], value[real], slot_mapping[real]
    blocks, offsets = slot_mapping // block_size, slot_mapping % block_size
    for new, cache in ((key, key_cache), (value, value_cache)):
        if isinstance(cache, QuantizedCache):
            cache.data[blocks, :, offsets], cache.scales[blocks, :, offsets] = quantize(new, cache.data.dtype)
        else:
            cache[blocks, :, offsets] = new.to(cache.dtype)


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
    """As `rotary_store.rotate_and_store`, unchecked: operator after operator."""
    _, num_kv_heads, _, head_dim = elements(key_cache).shape
    heads = qkv.view(len(qkv), -1, head_dim)
    query, key, value = torch.split(heads, [heads.shape[1] - 2 * num_kv_heads, num_kv_heads, num_kv_heads], dim=1)
    normed_query = query if q_norm is None else rms_norm(query, q_norm, eps)
    normed_key = key if k_norm is None else rms_norm(key, k_norm, eps)
    rotated_query, rotated_key = rotary_embedding(normed_query, normed_key, cos, sin)
    query.copy_(rotated_query)
    key.copy_(rotated_key)
    store_kv(key, value, key_cache, value_cache, slot_mapping)


def paged_attention(
    query: Tensor,
    key_cache: Cache,
    value_cache: Cache,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int | None = None,
) -> Tensor:
    """As `attention.paged_attention`, unchecked."""
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    block_size = elements(key_cache).shape[2]
    for length, tiles in _tiles_by_length(metadata).items():
        # Contexts in falling order: those still walking at any chunk are then the first of the stack.
        spans = {tile: tile.block_range(length, block_size, sliding_window) for tile in tiles}
        tiles.sort(key=lambda tile: spans[tile][0] - spans[tile][1])
        stack = max(1, STACKED_QUERIES // length)
        for start in range(0, len(tiles), stack):
            stacked = tiles[start : start + stack]
            rows = torch.tensor([tile.first_row for tile in stacked], device=query.device)
            rows = rows[:, None] + torch.arange(length, device=query.device)
            output[rows] = _attend(
                query[rows],
                key_cache,
                value_cache,
                metadata.block_tables,
                stacked,
                [spans[tile] for tile in stacked],
                scale,
                sliding_window,
            ).to(query.dtype)
    return output


def _tiles_by_length(metadata: AttentionMetadata) -> dict[int, list[_Tile]]:
    query_start, context_lens = metadata.lengths()
    tiles: dict[int, list[_Tile]] = defaultdict(list)
    for sequence, context_len in enumerate(context_lens):
        if context_len == 0:  # padding: whatever its rows hold
            continue
        row, end = query_start[sequence], query_start[sequence + 1]
        position = context_len - (end - row)
        while row < end:
            length = min(QUERY_TILE, end - row)
            tiles[length].append(_Tile(sequence, row, position))
            row, position = row + length, position + length
    return tiles


def _attend(
    query: Tensor,
    key_cache: Cache,
    value_cache: Cache,
    block_tables: Tensor,
    tiles: list[_Tile],
    spans: list[tuple[int, int]],
    scale: float,
    sliding_window: int | None,
) -> Tensor:
    """Attention of [stack, length, heads, head_dim] queries, tile i over blocks spans[i]; float32."""
    stack, length, num_heads, head_dim = query.shape
    _, num_kv_heads, block_size, _ = elements(key_cache).shape
    group = num_heads // num_kv_heads
    device = query.device
    # [stack, kv heads, group * length, head_dim]: a KV head meets all its queries in one product.
    wide = query.float().view(stack, length, num_kv_heads, group, head_dim).permute(0, 2, 3, 1, 4)
    wide = wide.reshape(stack, num_kv_heads, group * length, head_dim) * scale
    sequences = torch.tensor([tile.sequence for tile in tiles], device=device)
    first_blocks = torch.tensor([first for first, _ in spans], device=device)
    positions = torch.tensor([tile.first_position for tile in tiles], device=device)
    positions = (positions[:, None] + torch.arange(length, device=device)).repeat(1, group)[:, None, :, None]

    highest = torch.full((stack, num_kv_heads, group * length, 1), float("-inf"), device=device)
    total = torch.zeros_like(highest)
    result = torch.zeros_like(wide)
    chunk = max(1, CHUNK_TOKENS // block_size)
    for start in range(0, max(last - first for first, last in spans), chunk):
        walking = sum(last - first > start for first, last in spans)
        columns = first_blocks[:walking, None] + start + torch.arange(chunk, device=device)
        # Columns past a row's end are masked below; clamped, they name a block that exists.
        blocks = block_tables[sequences[:walking, None], columns.clamp(max=block_tables.shape[1] - 1)].long()
        keys = columns[:, :, None] * block_size + torch.arange(block_size, device=device)
        keys = keys.view(walking, 1, 1, chunk * block_size)
        visible = keys <= positions[:walking]
        if sliding_window is not None:
            visible &= keys > positions[:walking] - sliding_window
        # Table entries that no query needs may be anything; slots that no query sees may hold garbage.
        seen = visible.any(dim=2).squeeze(1)
        blocks = blocks.masked_fill(~seen.view(walking, chunk, block_size).any(dim=2), 0)
        key = _gather(key_cache, blocks)
        value = _gather(value_cache, blocks)
        value = value.masked_fill(~seen[:, None, :, None], 0.0)

        scores = (wide[:walking] @ key.transpose(2, 3)).masked_fill(~visible, float("-inf"))
        new_highest = torch.maximum(highest[:walking], scores.amax(dim=-1, keepdim=True))
        # A row that has seen no key yet has -inf on both sides; 0 keeps nan out of exp.
        safe = new_highest.masked_fill(new_highest == float("-inf"), 0.0)
        weights = torch.exp(scores - safe)
        decay = torch.exp(highest[:walking] - safe)
        total[:walking] = total[:walking] * decay + weights.sum(dim=-1, keepdim=True)
        result[:walking] = result[:walking] * decay + weights @ value
        highest[:walking] = new_highest
    result = (result / total).view(stack, num_kv_heads, group, length, head_dim)
    return result.permute(0, 3, 1, 2, 4).reshape(stack, length, num_heads, head_dim)


def _gather(cache: Cache, blocks: Tensor) -> Tensor:
    """Blocks [stack, chunk] of the cache as float32 [stack, kv heads, chunk * block_size, head_dim]."""
    held = (
        QuantizedCache(cache.data[blocks], cache.scales[blocks]) if isinstance(cache, QuantizedCache) else cache[blocks]
    )
    return dequantize(held).transpose(1, 2).flatten(2, 3)
