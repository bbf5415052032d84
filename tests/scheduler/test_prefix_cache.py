"""Chained hashes, and why a hash alone is never enough."""

from __future__ import annotations

import hashlib

import quire.scheduler.prefix_cache as module
from quire.scheduler.block_pool import BlockPool
from quire.scheduler.prefix_cache import PrefixCache, chain_hash


def _make(num_blocks: int = 4) -> tuple[BlockPool, PrefixCache]:
    pool = BlockPool(num_blocks)
    return pool, PrefixCache(pool)


def test_the_hash_is_sha256_over_parent_tokens_and_key():
    assert chain_hash(b"p", b"t", b"k") == hashlib.sha256(b"ptk").digest()


def test_find_needs_the_same_parent_tokens_and_key():
    pool, index = _make()
    root = index.insert(pool.take(), None, b"aaaa", b"", 0, 1)
    child = pool.take()
    index.insert(child, root, b"bbbb", b"", 0, 1)
    assert index.find(root, b"bbbb", b"") is child
    assert index.find(None, b"bbbb", b"") is None
    assert index.find(root, b"bbbc", b"") is None
    assert index.find(root, b"bbbb", b"tenant") is None


def test_the_first_of_two_equal_blocks_is_the_one_that_is_found():
    pool, index = _make()
    first, second = pool.take(), pool.take()
    prefix = index.insert(first, None, b"aaaa", b"", 0, 1)
    assert index.insert(second, None, b"aaaa", b"", 0, 2) is prefix
    assert second.prefix is None
    assert index.find(None, b"aaaa", b"") is first


def test_an_evicted_block_is_not_found():
    pool, index = _make()
    block = pool.take()
    index.insert(block, None, b"aaaa", b"", 0, 1)
    index.evict(block)
    assert index.find(None, b"aaaa", b"") is None
    assert len(index) == 0


def test_a_child_of_a_recomputed_parent_is_not_found_under_the_new_one():
    """Its KV was computed from the old parent's; only an unbroken chain of verified blocks is trusted."""
    pool, index = _make()
    old = pool.take()
    root = index.insert(old, None, b"aaaa", b"", 0, 1)
    child = pool.take()
    index.insert(child, root, b"bbbb", b"", 0, 1)
    index.evict(old)
    again = index.insert(pool.take(), None, b"aaaa", b"", 0, 2)
    assert index.find(again, b"bbbb", b"") is None
    newer = pool.take()
    index.insert(newer, again, b"bbbb", b"", 0, 2)
    assert index.find(again, b"bbbb", b"") is newer
    assert child.prefix is None
    index.check()


def test_a_collision_is_no_hit(monkeypatch):
    """With a hash of two values, different contents collide all the time and are still told apart."""
    monkeypatch.setattr(module, "chain_hash", lambda parent, tokens, key: bytes([sum(tokens) % 2]))
    pool, index = _make()
    block = pool.take()
    index.insert(block, None, b"\1\1", b"", 0, 1)
    assert index.find(None, b"\2\2", b"") is None
    assert index.find(None, b"\1\1", b"other") is None
    assert index.find(None, b"\1\1", b"") is block
