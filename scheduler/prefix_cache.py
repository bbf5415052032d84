"""Finds blocks by their content: a chained SHA-256 over (parent's hash, token ids, extra key).

The extra key separates prompts that must not share KV although their tokens agree (a tenant's salt, an adapter).
A hash only proposes a block; tokens, key and the parent's identity are compared before it is used, so that even
a collision cannot show one request the KV of another.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

from quire.kv_journal import chain_hash
from quire.scheduler.block_pool import Block, BlockPool, CachedPrefix
from quire.scheduler.prefix_journal import PrefixJournal
from quire.scheduler.swap_tier import SwapTier


def extra_key_digest(key: bytes) -> bytes:
    """What separates prompts, as the prefix cache and the journal keep it: 32 bytes, or none where there is no key."""
    return hashlib.sha256(key).digest() if key else b""


class PrefixListener(Protocol):
    """Is told what becomes of contents."""

    def add(self, prefix: CachedPrefix) -> None:
        """A block can be found by what its step, which may be only planned, fills it with."""

    def forget(self, prefix: CachedPrefix) -> None:
        """A content that was added can be found no longer."""

    def clear(self) -> None:
        """No content can be found any longer."""

    def acknowledge(self, lane: int, step: int) -> None:
        """An executor has computed everything up to `step`."""


class PrefixCache:
    """The index from hash to block. With a journal, what it knows outlives it."""

    def __init__(self, pool: BlockPool, journal: PrefixJournal | None = None, swap: SwapTier | None = None) -> None:
        self._pool = pool
        self._journal = journal
        self._swap = swap
        self._blocks: dict[bytes, Block] = {}
        # None unless somebody wants to know.
        self.listener: PrefixListener | None = None

    def __len__(self) -> int:
        return len(self._blocks)

    def find(self, hash_: bytes, parent: CachedPrefix | None, tokens: bytes, extra_key: bytes) -> Block | None:
        """The block that holds `tokens` after `parent`, whatever its state; None if there is none.

        `hash_` is what `chain_hash` makes of these; it is given because callers keep it.
        """
        block = self._blocks.get(hash_)
        if block is None or block.prefix is None:
            return None
        return block if block.prefix.is_of(parent, tokens, extra_key) else None

    def insert(self, block: Block, prefix: CachedPrefix) -> CachedPrefix:
        """Makes a full block findable; returns the prefix that its content is known by.

        Of two blocks with the same content the first stays the one that is found. A block whose hash is the same
        although its content or parent differs (its parent was evicted and computed anew) is replaced.
        """
        twin = self.find(prefix.hash, prefix.parent, prefix.tokens, prefix.extra_key)
        if twin is not None and twin.prefix is not None:
            return twin.prefix
        stale = self._blocks.get(prefix.hash)
        if stale is not None:
            self.evict(stale)
        assert block.prefix is None, f"{block} is already cached"
        if self._swap is not None:
            prefix = self._swap.known(prefix)
        block.prefix = prefix
        self._blocks[prefix.hash] = block
        if self._journal is not None:
            self._journal.add(block, prefix)
        if self.listener is not None:
            self.listener.add(prefix)
        return prefix

    def evict(self, block: Block) -> None:
        """Forgets a block: it is about to be written, or its content is not to be trusted."""
        prefix = block.prefix
        if prefix is not None:
            if self._blocks.get(prefix.hash) is block:
                del self._blocks[prefix.hash]
            self._forget(block)
            if self.listener is not None:
                self.listener.forget(prefix)

    def clear(self) -> None:
        """Forgets all blocks: what they held is gone."""
        for block in self._blocks.values():
            self._forget(block)
        self._blocks.clear()
        if self.listener is not None:
            self.listener.clear()

    def contents(self) -> list[CachedPrefix]:
        """What can be found, in the order in which it came to be."""
        return [block.prefix for block in self._blocks.values() if block.prefix is not None]

    def restore(self) -> int:
        """Takes over the blocks that the journal knows, which nobody writes any more; returns their number."""
        if self._journal is None:
            return 0
        restored = list(self._journal.restore(chain_hash))
        # They have memory, and so have all before them: the pool grows from its first block on.
        self._pool.extend(max((block_id + 1 for block_id, _ in restored), default=0))
        for block_id, prefix in restored:
            block = self._pool.blocks[block_id]
            self._pool.acquire(block)
            block.prefix = prefix
            self._blocks[prefix.hash] = block
            self._pool.release(block)
        return len(restored)

    def check(self) -> None:
        """Compares index and blocks (O(index)). Raises AssertionError."""
        for hash_, block in self._blocks.items():
            assert block.prefix is not None and block.prefix.hash == hash_, f"{block} is indexed wrongly"
        if self._journal is not None:
            self._journal.check(self._pool.blocks)

    def _forget(self, block: Block) -> None:
        self._pool.forget(block)
        if self._journal is not None:
            self._journal.forget(block)
