"""The KV pool as the kernels want it: per layer, keys and values [num_blocks, kv_heads, block_size, head_dim].

A block holds, for each layer, keys and then values, so the views of a layer stride over the pool.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor

from quire import kernels
from quire.errors import KvPoolError
from quire.kv_pool import CacheGroupLayout, KvPool, KvPoolLayout


class KvCache:
    """A mapped or allocated pool of one cache group."""

    def __init__(self, blocks: Tensor, group: CacheGroupLayout, block_size: int) -> None:
        """`blocks` is [num_blocks, elements of a block]."""
        self.blocks = blocks
        self.num_blocks = blocks.shape[0]
        self.block_size = block_size
        shaped = blocks.view(-1, group.num_layers, 2, group.num_kv_heads, block_size, group.head_dim)
        # (keys, values) of each layer.
        self.layers = tuple((shaped[:, i, 0], shaped[:, i, 1]) for i in range(group.num_layers))

    @classmethod
    def map(cls, pool: KvPool, rank: int, group: CacheGroupLayout, dtype: torch.dtype) -> Self:
        """Views of a rank's segment; nothing is copied."""
        segment = torch.frombuffer(pool.segment(rank), dtype=dtype)
        return cls(segment.view(pool.layout.num_blocks, -1), group, pool.layout.block_size)

    @classmethod
    def allocate(
        cls, num_blocks: int, block_size: int, group: CacheGroupLayout, dtype: torch.dtype, device: torch.device
    ) -> Self:
        """A pool in the device's own memory. Raises KvPoolError if it does not fit."""
        elements = block_size * group.bytes_per_token // group.element_bytes
        try:
            # Zeros, since a masked read of a block that was never written must not meet a NaN.
            blocks = torch.zeros((num_blocks, elements), dtype=dtype, device=device)
        except torch.OutOfMemoryError as error:
            size = num_blocks * block_size * group.bytes_per_token
            raise KvPoolError(
                f"the KV pool of {size} bytes does not fit the memory of {device}; lower --kv-cache-memory",
                field="kv_cache_memory",
            ) from error
        return cls(blocks, group, block_size)

    def copy_blocks(self, sources: np.ndarray, destinations: np.ndarray) -> None:
        """Makes block destinations[i] a copy of sources[i]; both int64 [n]."""
        device = self.blocks.device
        kernels.copy_blocks(
            self.blocks, torch.from_numpy(sources).to(device), torch.from_numpy(destinations).to(device)
        )


def check_layout(layout: KvPoolLayout, *, num_blocks: int, block_size: int, epoch: int) -> None:
    """Raises KvPoolError if a pool is not the one that was announced."""
    found = (layout.num_blocks, layout.block_size, layout.epoch)
    if found != (num_blocks, block_size, epoch):
        raise KvPoolError(
            f"the KV pool has {found[0]} blocks of {found[1]} tokens and epoch {found[2]}; "
            f"announced were {num_blocks} of {block_size} and epoch {epoch}"
        )


def check_model(layout: KvPoolLayout, *, fingerprint: bytes, group: CacheGroupLayout, rank: int) -> None:
    """Raises KvPoolError if a pool was made for another model."""
    if layout.groups != (group,):
        raise KvPoolError(f"the KV pool holds {layout.groups}, this model needs {(group,)}")
    if layout.fingerprint != fingerprint:
        raise KvPoolError("the KV pool was made for other weights or another KV format than this executor has")
    if rank >= layout.num_ranks:
        raise KvPoolError(f"the KV pool has {layout.num_ranks} ranks, this executor is rank {rank}")
