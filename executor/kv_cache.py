"""The KV pool as the kernels want it: per layer, keys and values [num_blocks, kv_heads, block_size, head_dim].

A block holds all layers (`quire.kv_pool` draws it), so the views of a layer stride over the pool.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor

from quire import kernels
from quire.errors import KvPoolError
from quire.kv_layout import CacheGroupLayout, KvPoolLayout
from quire.kv_pool import KvPool


class KvCache:
    """A mapped or allocated pool of one cache group."""

    def __init__(self, blocks: Tensor, group: CacheGroupLayout, block_size: int, dtype: torch.dtype) -> None:
        """`blocks` is uint8 [num_blocks, bytes of a block]; `dtype` is the elements'."""
        self.blocks = blocks
        self.num_blocks = blocks.shape[0]
        self.block_size = block_size
        # (keys, values) of each layer.
        self.layers = tuple(
            _layer_views(layer, group, block_size, dtype) for layer in blocks.chunk(group.num_layers, 1)
        )

    @classmethod
    def map(cls, pool: KvPool, rank: int, group: CacheGroupLayout, dtype: torch.dtype) -> Self:
        """Views of a rank's segment; nothing is copied. `dtype` is the elements'."""
        segment = torch.frombuffer(pool.segment(rank), dtype=torch.uint8)
        blocks = segment.view(pool.layout.num_blocks, -1)
        return cls(blocks, group, pool.layout.block_size, dtype)

    @classmethod
    def allocate(
        cls, num_blocks: int, block_size: int, group: CacheGroupLayout, dtype: torch.dtype, device: torch.device
    ) -> Self:
        """A pool in the device's own memory. Raises KvPoolError if it does not fit."""
        block_bytes = block_size * group.bytes_per_token
        try:
            # Zeros, since a masked read of a block that was never written must not meet a NaN.
            blocks = torch.zeros((num_blocks, block_bytes), dtype=torch.uint8, device=device)
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # steps run in a stream of their own
        except torch.OutOfMemoryError as error:
            raise KvPoolError(
                f"the KV pool of {num_blocks * block_bytes} bytes does not fit the memory of {device}; "
                "lower --kv-cache-memory",
                field="kv_cache_memory",
            ) from error
        return cls(blocks, group, block_size, dtype)

    def copy_blocks(self, sources: np.ndarray, destinations: np.ndarray) -> None:
        """Makes block destinations[i] a copy of sources[i]; both int64 [n]."""
        device = self.blocks.device
        kernels.copy_blocks(
            self.blocks, torch.from_numpy(sources).to(device), torch.from_numpy(destinations).to(device)
        )


def _layer_views(
    layer: Tensor, group: CacheGroupLayout, block_size: int, dtype: torch.dtype
) -> tuple[kernels.Cache, kernels.Cache]:
    """Keys and values of one layer's bytes, uint8 [num_blocks, bytes], as `kv_pool` lays them out."""
    rows = 2 * group.num_kv_heads * block_size
    data, scales = torch.split(layer, [rows * group.head_dim * group.element_bytes, rows * group.scale_bytes], dim=1)
    shape = (len(layer), 2, group.num_kv_heads, block_size)
    keys, values = data.view(dtype).view(*shape, group.head_dim).unbind(1)
    if not group.scale_bytes:
        return keys, values
    key_scales, value_scales = scales.view(torch.float32).view(shape).unbind(1)
    return kernels.QuantizedCache(keys, key_scales), kernels.QuantizedCache(values, value_scales)


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
