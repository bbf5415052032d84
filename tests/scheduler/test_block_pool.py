"""The free list: order of use, counts, and O(1) removal from the middle."""

from __future__ import annotations

import pytest

from quire.scheduler.block_pool import BlockPool, CachedPrefix
from quire.scheduler.prefix_cache import PrefixCache


def _cached(pool: BlockPool, index: PrefixCache, *contents: bytes) -> list:
    """One unreferenced cached block for each content, in that order."""
    blocks = [pool.take() for _ in contents]
    for block, tokens in zip(blocks, contents, strict=True):
        index.insert(block, CachedPrefix(tokens, None, tokens, b"", lane=0, step=1))
    for block in blocks:
        pool.release(block)
    return blocks


def test_counts_add_up():
    pool = BlockPool(4)
    first, second = pool.take(), pool.take()
    assert (pool.num_free, pool.num_cached, pool.num_held) == (2, 0, 2)
    pool.acquire(first)
    pool.release(first)
    assert pool.num_held == 2, "one reference is left"
    pool.release(first)
    pool.release(second)
    assert (pool.num_free, pool.num_cached, pool.num_held) == (4, 0, 0)
    pool.check_list()


def test_free_blocks_are_used_before_cached_ones_and_these_in_lru_order():
    pool = BlockPool(5)
    index = PrefixCache(pool)
    first, second, third = _cached(pool, index, b"1", b"2", b"3")
    pool.acquire(first)  # a hit makes it the most recently used
    pool.release(first)
    used = [pool.take() for _ in range(5)]
    assert {used[0], used[1]}.isdisjoint({first, second, third})
    assert used[2:] == [second, third, first]


def test_a_hit_takes_a_block_out_of_the_middle():
    pool = BlockPool(3)
    index = PrefixCache(pool)
    _, middle, _ = _cached(pool, index, b"1", b"2", b"3")
    pool.acquire(middle)
    assert (pool.num_free, pool.num_cached, pool.num_held) == (0, 2, 1)
    pool.check_list()


def test_releasing_twice_is_noticed():
    pool = BlockPool(1)
    block = pool.take()
    pool.release(block)
    with pytest.raises(AssertionError, match="more often"):
        pool.release(block)


def test_taking_from_an_empty_pool_is_noticed():
    pool = BlockPool(1)
    pool.take()
    with pytest.raises(AssertionError, match="empty pool"):
        pool.take()
