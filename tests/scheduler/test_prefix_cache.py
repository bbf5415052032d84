"""Chained hashes, and why a hash alone is never enough."""

from __future__ import annotations

import hashlib

import quire.scheduler.prefix_cache as module
from quire.kv_journal import chain_hash
from quire.scheduler.block_pool import Block, BlockPool, CachedPrefix
from quire.scheduler.prefix_cache import PrefixCache


def _hash(parent: CachedPrefix | None, tokens: bytes, extra_key: bytes) -> bytes:
    return module.chain_hash(parent.hash if parent else b"", tokens, extra_key)


def _insert(
    index: PrefixCache, block: Block, parent: CachedPrefix | None, tokens: bytes, *, step: int = 1
) -> CachedPrefix:
    return index.insert(block, CachedPrefix(_hash(parent, tokens, b""), parent, tokens, b"", 0, step))


def _find(index: PrefixCache, parent: CachedPrefix | None, tokens: bytes, extra_key: bytes = b"") -> Block | None:
    return index.find(_hash(parent, tokens, extra_key), parent, tokens, extra_key)


def _make(num_blocks: int = 4) -> tuple[BlockPool, PrefixCache]:
    pool = BlockPool(num_blocks)
    return pool, PrefixCache(pool)


def test_the_hash_is_sha256_over_parent_tokens_and_key():
    assert chain_hash(b"p", b"t", b"k") == hashlib.sha256(b"ptk").digest()


def test_find_needs_the_same_parent_tokens_and_key():
    pool, index = _make()
    root = _insert(index, pool.take(), None, b"aaaa")
    child = pool.take()
    _insert(index, child, root, b"bbbb")
    assert _find(index, root, b"bbbb") is child
    assert _find(index, None, b"bbbb") is None
    assert _find(index, root, b"bbbc") is None
    assert _find(index, root, b"bbbb", b"tenant") is None


def test_the_first_of_two_equal_blocks_is_the_one_that_is_found():
    pool, index = _make()
    first, second = pool.take(), pool.take()
    prefix = _insert(index, first, None, b"aaaa")
    assert _insert(index, second, None, b"aaaa", step=2) is prefix
    assert second.prefix is None
    assert _find(index, None, b"aaaa") is first


def test_an_evicted_block_is_not_found():
    pool, index = _make()
    block = pool.take()
    _insert(index, block, None, b"aaaa")
    index.evict(block)
    assert _find(index, None, b"aaaa") is None
    assert len(index) == 0


def test_a_child_of_a_recomputed_parent_is_not_found_under_the_new_one():
    """Its KV was computed from the old parent's; only an unbroken chain of verified blocks is trusted."""
    pool, index = _make()
    old = pool.take()
    root = _insert(index, old, None, b"aaaa")
    child = pool.take()
    _insert(index, child, root, b"bbbb")
    index.evict(old)
    again = _insert(index, pool.take(), None, b"aaaa", step=2)
    assert _find(index, again, b"bbbb") is None
    newer = pool.take()
    _insert(index, newer, again, b"bbbb", step=2)
    assert _find(index, again, b"bbbb") is newer
    assert child.prefix is None
    index.check()


def test_a_collision_is_no_hit(monkeypatch):
    """With a hash of two values, different contents collide all the time and are still told apart."""
    monkeypatch.setattr(module, "chain_hash", lambda parent, tokens, key: bytes([sum(tokens) % 2]))
    pool, index = _make()
    block = pool.take()
    _insert(index, block, None, b"\1\1")
    assert _find(index, None, b"\2\2") is None
    assert _find(index, None, b"\1\1", b"other") is None
    assert _find(index, None, b"\1\1") is block
