"""KV blocks, their reference counts and the free list.

Every block is in one of three states, and free + cached + held = all:

- held: `ref_count` > 0, in the block table of at least one sequence (or named by a step in flight);
- cached: unreferenced, but it still has a hash: a prefix hit may take it, an allocation may evict it;
- free: unreferenced, without a hash.

Unreferenced blocks form one doubly linked list through the blocks themselves, so taking any block out of the
middle (a prefix hit) is O(1) and needs no allocation. Free blocks enter at the front and cached ones at the
back, so the front is always the block that is cheapest to lose, and cached blocks leave in LRU order.
"""

from __future__ import annotations

from dataclasses import dataclass


# Not frozen: one is made for every full block, and freezing would make that several times as expensive.
@dataclass(slots=True, eq=False, weakref_slot=True)
class CachedPrefix:
    """The content of a full block, for the prefix cache. Identity (not equality) names a parent."""

    hash: bytes
    parent: CachedPrefix | None
    tokens: bytes
    extra_key: bytes
    # The step that writes the last of the block, on the executor of that lane: computes it or swaps it in.
    lane: int
    step: int
    # Names it in the pool's journal, if there is one.
    number: int = 0

    def is_of(self, parent: CachedPrefix | None, tokens: bytes, extra_key: bytes) -> bool:
        """Whether it is the content of these tokens after `parent`: its hash alone proves nothing."""
        return self.parent is parent and self.tokens == tokens and self.extra_key == extra_key


class Block:
    """One KV block. `prefix` is what the prefix cache knows of its content, if anything."""

    __slots__ = ("id", "next", "prefix", "prev", "ref_count", "retiring")

    def __init__(self, block_id: int) -> None:
        self.id = block_id
        self.ref_count = 0
        # How many of the references end once a step in flight is acknowledged.
        self.retiring = 0
        self.prefix: CachedPrefix | None = None
        self.prev: Block | None = None
        self.next: Block | None = None

    @property
    def is_writable(self) -> bool:
        """Whether its one owner may write it: it is neither shared nor findable by others."""
        return self.ref_count - self.retiring <= 1 and self.prefix is None

    def __repr__(self) -> str:
        return f"Block({self.id}, ref_count={self.ref_count}, cached={self.prefix is not None})"


class BlockPool:
    """All blocks of the pool. The first `num_usable` are in use; the memory of the others is still being made."""

    def __init__(self, num_blocks: int, num_usable: int | None = None) -> None:
        self.blocks = [Block(i) for i in range(num_blocks)]
        self.num_usable = 0
        self.num_cached = 0
        self.num_held = 0
        # Blocks that have come to be in another state, while somebody looks at them (`monitor/block_map.py`).
        self.changed: set[Block] | None = None
        # Sentinels spare every list operation its empty-list case.
        self._front = Block(-1)
        self._back = Block(-2)
        self._front.next, self._back.prev = self._back, self._front
        self.extend(num_blocks if num_usable is None else num_usable)

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    @property
    def num_available(self) -> int:
        """Blocks that can be allocated: free and cached ones."""
        return self.num_usable - self.num_held

    @property
    def num_free(self) -> int:
        return self.num_usable - self.num_held - self.num_cached

    @property
    def usage(self) -> float:
        """Share of all blocks that is held, from 0 to 1: vLLM's kv_cache_usage_perc."""
        return self.num_held / self.num_blocks

    def extend(self, num_usable: int) -> None:
        """The blocks below `num_usable` have memory now: those that are new join the free ones, if any are."""
        if num_usable <= self.num_usable:
            return
        place = self._front.next
        assert place is not None
        for block in self.blocks[self.num_usable : num_usable]:
            self._insert_before(place, block)
        self.num_usable = num_usable

    def take(self) -> Block:
        """The next block to use, with one reference; its old content must be forgotten by the caller.

        Check `num_available` first: taking from an empty pool is a defect.
        """
        block = self._front.next
        assert block is not None and block is not self._back, "took a block from an empty pool"
        self._unlink(block)
        block.ref_count = 1
        self.num_held += 1
        self.num_cached -= block.prefix is not None
        if self.changed is not None:
            self.changed.add(block)
        return block

    def acquire(self, block: Block) -> None:
        """Adds a reference; an unreferenced block leaves the list."""
        if block.ref_count == 0:
            self._unlink(block)
            self.num_held += 1
            self.num_cached -= block.prefix is not None
        block.ref_count += 1
        if self.changed is not None:
            self.changed.add(block)

    def release(self, block: Block) -> None:
        """Drops a reference; the last one puts the block into the list."""
        assert block.ref_count > 0, f"released {block} more often than it was acquired"
        block.ref_count -= 1
        if self.changed is not None:
            self.changed.add(block)
        if block.ref_count:
            return
        self.num_held -= 1
        if block.prefix is None:
            assert self._front.next is not None
            self._insert_before(self._front.next, block)
        else:
            self.num_cached += 1
            self._insert_before(self._back, block)

    def forget(self, block: Block) -> None:
        """Drops what is known of a block's content: it can no longer be hit."""
        if block.prefix is None:
            return
        block.prefix = None
        if self.changed is not None:
            self.changed.add(block)
        if block.ref_count == 0:
            self.num_cached -= 1
            self._unlink(block)
            assert self._front.next is not None
            self._insert_before(self._front.next, block)

    def check_list(self) -> None:
        """Walks the whole list (O(pool)) and compares it with the counters. Raises AssertionError."""
        seen = cached = 0
        block = self._front.next
        while block is not self._back:
            assert block is not None and block.next is not None and block.next.prev is block, "broken links"
            assert block.ref_count == 0 and block.retiring == 0, f"{block} is held and in the free list"
            seen += 1
            cached += block.prefix is not None
            block = block.next
        assert seen == self.num_available, f"{seen} blocks in the list, {self.num_available} counted"
        assert cached == self.num_cached, f"{cached} cached blocks in the list, {self.num_cached} counted"

    @staticmethod
    def _insert_before(place: Block, block: Block) -> None:
        before = place.prev
        assert before is not None
        block.prev, block.next = before, place
        before.next = place.prev = block

    @staticmethod
    def _unlink(block: Block) -> None:
        assert block.prev is not None and block.next is not None
        block.prev.next, block.next.prev = block.next, block.prev
        block.prev = block.next = None
