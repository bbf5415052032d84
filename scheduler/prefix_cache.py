"""Finds blocks by their content: a chained SHA-256 over (parent's hash, token ids, extra key).

The extra key separates prompts that must not share KV although their tokens agree (a tenant's salt, an adapter).
A hash only proposes a block; tokens, key and the parent's identity are compared before it is used, so that even
a collision cannot show one request the KV of another.
"""

from __future__ import annotations

import hashlib

from quire.scheduler.block_pool import Block, BlockKey, BlockPool, CachedPrefix


def chain_hash(parent: bytes, tokens: bytes, extra_key: bytes) -> bytes:
    """The 32-byte name of a block; `parent` is empty for a sequence's first block."""
    return hashlib.sha256(parent + tokens + extra_key).digest()


def next_key(parent: BlockKey | None, tokens: bytes, extra_key: bytes) -> BlockKey:
    """The key of the block that holds `tokens` after `parent`."""
    return BlockKey(chain_hash(parent.hash if parent else b"", tokens, extra_key), tokens, extra_key)


class PrefixCache:
    """The index from hash to block."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._blocks: dict[bytes, Block] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def find(self, parent: CachedPrefix | None, key: BlockKey) -> Block | None:
        """The block with this content after `parent`, whatever its state; None if there is none."""
        block = self._blocks.get(key.hash)
        if block is None or block.prefix is None:
            return None
        return block if block.prefix.parent is parent and block.prefix.key == key else None

    def insert(self, block: Block, parent: CachedPrefix | None, key: BlockKey, lane: int, step: int) -> CachedPrefix:
        """Makes a full block findable; returns the prefix that ends with it.

        Of two blocks with the same content the first stays the one that is found. A block whose hash is the same
        although its content or parent differs (its parent was evicted and computed anew) is replaced.
        """
        twin = self.find(parent, key)
        if twin is not None and twin.prefix is not None:
            return twin.prefix
        stale = self._blocks.get(key.hash)
        if stale is not None:
            self._pool.forget(stale)
        assert block.prefix is None, f"{block} is already cached"
        block.prefix = CachedPrefix(key, parent, lane, step)
        self._blocks[key.hash] = block
        return block.prefix

    def evict(self, block: Block) -> None:
        """Forgets a block that is about to be written."""
        if block.prefix is not None:
            if self._blocks.get(block.prefix.key.hash) is block:
                del self._blocks[block.prefix.key.hash]
            self._pool.forget(block)

    def check(self) -> None:
        """Compares index and blocks (O(index)). Raises AssertionError."""
        for hash_, block in self._blocks.items():
            assert block.prefix is not None and block.prefix.key.hash == hash_, f"{block} is indexed wrongly"
