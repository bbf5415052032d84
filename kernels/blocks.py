"""Copy on write of whole blocks."""

import torch
from torch import Tensor

from . import native_blocks
from .backend import implementation_for

__all__ = ["copy_blocks"]


def copy_blocks(pool: Tensor, sources: Tensor, destinations: Tensor) -> None:
    """Copy block sources[i] of the pool over block destinations[i], for all i.

    A destination must be neither a source nor another destination of the same call: a forked block is
    copied into a fresh one. So the copies may run in any order and side by side.

    Args:
        pool: [num_blocks, ...] of any dtype, contiguous within a block. Written in place.
        sources: int64 [n] block ids.
        destinations: int64 [n] block ids.

    Raises:
        ValueError: wrong dtype, shape or layout; on a CPU also an id outside the pool or a destination
            that breaks the rule above (on a GPU that would wait for the device).
    """
    if pool.dim() < 1 or (pool.shape[0] and not pool[0].is_contiguous()):
        raise ValueError(f"pool must be [num_blocks, ...], contiguous within a block; strides {pool.stride()}")
    for name, ids in (("sources", sources), ("destinations", destinations)):
        if ids.dtype != torch.int64 or ids.dim() != 1 or not ids.is_contiguous():
            raise ValueError(f"{name} must be contiguous int64 [n], not {ids.dtype} {list(ids.shape)}")
        if ids.device != pool.device:
            raise ValueError(f"{name} is on {ids.device}, pool on {pool.device}")
    if sources.shape != destinations.shape:
        raise ValueError(f"destinations has {destinations.shape[0]} ids, sources {sources.shape[0]}")
    if sources.shape[0] == 0:
        return
    if pool.device.type == "cpu":
        _check_ids(sources.tolist(), destinations.tolist(), pool.shape[0])
    implementation = implementation_for(pool.device)
    if implementation == "native":
        native_blocks.copy_blocks(pool, sources, destinations)
    elif implementation == "triton":
        from .triton import blocks

        blocks.copy_blocks(pool, sources, destinations)
    else:
        pool.index_copy_(0, destinations, pool.index_select(0, sources))


def _check_ids(sources: list[int], destinations: list[int], num_blocks: int) -> None:
    # In Python: a step copies a handful of blocks, and each copy costs far more than this.
    for name, ids in (("sources", sources), ("destinations", destinations)):
        if min(ids) < 0 or max(ids) >= num_blocks:
            raise ValueError(f"{name} has a block outside [0, {num_blocks})")
    unique = set(destinations)
    if len(unique) != len(destinations) or not unique.isdisjoint(sources):
        raise ValueError("destinations must be distinct and none of them a source")
