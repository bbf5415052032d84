"""Random attention steps over a pool laid out as the server's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quire import kernels
from quire.kernels.cache import SCALED_DTYPES, Cache, QuantizedCache, quantize

__all__ = ["Case", "make_case"]


@dataclass(frozen=True)
class Case:
    """The arguments of one paged_attention call."""

    query: Tensor
    key_cache: Cache
    value_cache: Cache
    metadata: kernels.AttentionMetadata
    scale: float

    @property
    def arguments(self) -> tuple[Tensor, Cache, Cache, kernels.AttentionMetadata]:
        return self.query, self.key_cache, self.value_cache, self.metadata

    def spoil(self, row: int, positions: range) -> None:
        """Makes what sequence `row` holds at `positions` nan."""
        for position in positions:
            for cache in (self.key_cache, self.value_cache):
                floats = cache.scales if isinstance(cache, QuantizedCache) else cache
                block_size = floats.shape[2]
                floats[self.metadata.block_tables[row, position // block_size], :, position % block_size] = torch.nan


def _metadata(
    query_lens: Sequence[int], context_lens: Sequence[int], block_size: int, generator: torch.Generator
) -> tuple[kernels.AttentionMetadata, int]:
    counts = [-(-length // block_size) for length in context_lens]
    # Twice the blocks that are needed: what no table names must not matter.
    num_blocks = 2 * sum(counts) + 1
    shuffled = torch.randperm(num_blocks, generator=generator).int()
    block_tables = torch.zeros(len(counts), max(counts, default=1), dtype=torch.int32)
    slots: list[Tensor] = []
    for row, (count, query_len, context_len) in enumerate(zip(counts, query_lens, context_lens, strict=True)):
        block_tables[row, :count] = shuffled[:count]
        shuffled = shuffled[count:]
        positions = torch.arange(context_len - query_len, context_len)
        slots.append(block_tables[row].long()[positions // block_size] * block_size + positions % block_size)
    return (
        kernels.AttentionMetadata(
            query_start=torch.tensor([0, *query_lens]).cumsum(0).int(),
            context_lens=torch.tensor(context_lens, dtype=torch.int32),
            block_tables=block_tables,
            slot_mapping=torch.cat(slots),
        ),
        num_blocks,
    )


def make_case(
    query_lens: Sequence[int],
    context_lens: Sequence[int],
    *,
    num_kv_heads: int = 2,
    group: int = 3,
    head_dim: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Case:
    """A random step; slots that no sequence holds are nan."""
    generator = torch.Generator().manual_seed(seed)
    metadata, num_blocks = _metadata(query_lens, context_lens, block_size, generator)
    # Of three layers the middle one. Only what sequences hold is a number: whoever reads anything else shows it.
    shape = (num_blocks, 3, 2, num_kv_heads, block_size, head_dim)
    pool = torch.full(shape, torch.nan)
    for row, context_len in enumerate(context_lens):
        positions = torch.arange(context_len)
        blocks = metadata.block_tables[row].long()[positions // block_size]
        content = torch.randn(context_len, 2, num_kv_heads, head_dim, generator=generator)
        pool[blocks, 1, :, :, positions % block_size] = content
    query = torch.randn(sum(query_lens), num_kv_heads * group, head_dim, generator=generator).to(dtype)
    caches: list[Cache]
    if cache_dtype in SCALED_DTYPES:
        data, scales = quantize(pool, cache_dtype)
        caches = [QuantizedCache(data[:, 1, i], scales[:, 1, i]) for i in range(2)]
    else:
        pool = pool.to(cache_dtype or dtype)
        caches = [pool[:, 1, i] for i in range(2)]
    return Case(query, *caches, metadata, head_dim**-0.5)
