"""Copy on write: whole blocks, moved as bytes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch

__all__ = ["copy_blocks"]

# Widest first: two of the first are one access of 128 bits.
_WORDS = (torch.int64, torch.int32, torch.int16, torch.uint8)
# Of one program: 8 KiB in the widest type, 64 bytes a thread.
_TILE = 1024


def copy_blocks(pool: Tensor, sources: Tensor, destinations: Tensor) -> None:
    """As `blocks.copy_blocks`, unchecked. Limit: bytes moved / memory bandwidth, 2 * n * bytes of a block."""
    words = _as_words(pool)
    num_words = words[0].numel()
    if num_words == 0:
        return
    tiles = triton.cdiv(num_words, _TILE)
    # The tiles of one pair lie behind one another: an axis of the grid holds 65,535 only, but for the first.
    grid = (len(sources) * tiles,)
    launch(
        _copy_tile,
        grid,
        words,
        words.stride(0),
        sources,
        destinations,
        num_warps=4,
        TILES=tiles,
        NUM_WORDS=num_words,
        TILE=_TILE,
    )


def _as_words(pool: Tensor) -> Tensor:
    """The pool's blocks as [num_blocks, words] of the widest integers that they are made of."""
    size = pool[0].numel()
    flat = pool.as_strided((len(pool), size), (pool.stride(0), 1))
    octets = flat.view(torch.uint8)
    for dtype in _WORDS:
        width = dtype.itemsize
        if not (octets.shape[1] % width or octets.stride(0) % width or octets.storage_offset() % width):
            return octets.view(dtype)
    raise AssertionError("a byte divides everything")


@triton.jit
def _copy_tile(
    pool, block_stride, sources, destinations, TILES: tl.constexpr, NUM_WORDS: tl.constexpr, TILE: tl.constexpr
):
    program = tl.program_id(0)
    pair, tile = program // TILES, program % TILES
    words = tile * TILE + tl.arange(0, TILE)
    inside = words < NUM_WORDS
    source = pool + tl.load(sources + pair) * block_stride
    destination = pool + tl.load(destinations + pair) * block_stride
    tl.store(destination + words, tl.load(source + words, mask=inside), mask=inside)
