"""Block tables: which blocks hold a sequence's KV, and every rule about sharing them.

    | block 0      | block 1      | block 2      | block 3      |
    |<- hits of the prefix cache ->|<- computed in this step ->|
                                   num_computed_tokens         num_computed_tokens + num_new_tokens

- A hit never covers the last token, since something has to be computed to sample from, nor what else is read off the
  forward pass (`Sequence.max_prefix_hit`).
- A shared or findable block is never written: the writer gets a copy (copy on write).
- A block is given back when every step that names it has been acknowledged, not when its sequence lets go.
- With a swap tier a hit goes on among the host's blocks. The sequence holds these until it is planned; then they are
  brought into blocks of the pool (`swap_tier.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from quire.kv_journal import KvJournal, chain_hash
from quire.scheduler.block_pool import Block, BlockPool, CachedPrefix
from quire.scheduler.prefix_cache import PrefixCache
from quire.scheduler.prefix_journal import PrefixJournal
from quire.scheduler.sequence import Sequence
from quire.scheduler.swap_tier import HostCopy, SwapTier


@dataclass(slots=True)
class Allocation:
    """How a sequence's block table changes in a step."""

    # Leading entries that stay as they are.
    num_kept: int
    # Entries that follow; the first may be a copy of what it replaces.
    appended: list[Block]
    # (source, destination) block ids to copy before the step computes.
    copies: list[tuple[int, int]]


@dataclass(slots=True)
class Lane:
    """One executor's progress, as far as blocks depend on it."""

    planned_step: int = 0
    acknowledged_step: int = 0
    # References that end when a step in flight is acknowledged, by that step.
    retiring: dict[int, list[Block]] = field(default_factory=dict)

    @property
    def num_retiring(self) -> int:
        return sum(map(len, self.retiring.values()))


class KvCache:
    """The block tables of all sequences over one pool."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        num_usable: int | None = None,
        num_lanes: int = 1,
        prefix_caching: bool = True,
        journal: KvJournal | None = None,
        swap: SwapTier | None = None,
    ) -> None:
        """`swap` needs prefix caching."""
        self.block_size = block_size
        self.pool = BlockPool(num_blocks, num_usable)
        self.journal = PrefixJournal(journal, num_lanes) if journal is not None and prefix_caching else None
        self.swap = swap
        self.prefixes = PrefixCache(self.pool, self.journal, swap)
        self.lanes = [Lane() for _ in range(num_lanes)]
        self.prefix_caching = prefix_caching
        # Tokens of sequences that were looked for in the prefix cache when these first ran, and those that were found
        # in the pool; the swap tier counts its own.
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0
        self.num_copies = 0
        self.num_restored = 0

    @property
    def max_num_tokens(self) -> int:
        """The longest sequence that fits when it has the pool to itself."""
        return self.pool.num_blocks * self.block_size

    @property
    def num_retiring(self) -> int:
        """Upper bound on the blocks that acknowledgements still to come will free."""
        return sum(lane.num_retiring for lane in self.lanes)

    def restore(self) -> None:
        """Takes over what the pool's journal says. Once, before any plan, and when nobody writes the pool any more."""
        self.num_restored = self.prefixes.restore()

    def adopt_prefix(self, sequence: Sequence, lane: int) -> int:
        """Gives a sequence without blocks the cached blocks of its longest known prefix; returns their number.

        Blocks that another executor computes count only once it has acknowledged them. `abandon` undoes it.
        """
        sequence.lane = lane
        sequence.last_step = 0
        if not self.prefix_caching:
            return 0
        for i in range(sequence.max_prefix_hit // self.block_size):
            hash_, tokens = self._content(sequence, i)
            block = self.prefixes.find(hash_, sequence.known_prefix, tokens, sequence.request.extra_key)
            if block is None or block.prefix is None:
                break
            written_by = block.prefix.lane
            if written_by != lane and self.lanes[written_by].acknowledged_step < block.prefix.step:
                break
            self.pool.acquire(block)
            sequence.blocks.append(block)
            sequence.known_prefix = block.prefix
        if self.swap is not None:
            self._adopt_copies(sequence, self.swap)
        sequence.num_hashed_blocks = len(sequence.blocks) + len(sequence.host_hits)
        sequence.num_computed_tokens = sequence.num_hashed_blocks * self.block_size
        return sequence.num_hashed_blocks

    def abandon(self, sequence: Sequence) -> None:
        """Takes back the blocks of a sequence that no plan names yet."""
        for block in reversed(sequence.blocks):
            self.pool.release(block)
        if self.swap is not None:
            self.swap.drop(sequence.host_hits)
        self._reset(sequence)

    def count_hits(self, sequence: Sequence) -> None:
        """Of a sequence that has adopted its prefix and runs for the first time."""
        if not self.prefix_caching:
            return
        # What was brought in while it waited may be gone again.
        num_brought_in = min(len(sequence.host_hits) + sequence.num_prefetched_blocks, sequence.num_hashed_blocks)
        num_hit_tokens = (sequence.num_hashed_blocks - num_brought_in) * self.block_size
        self.num_queried_tokens += len(sequence.token_ids)
        self.num_hit_tokens += num_hit_tokens
        if self.swap is not None:
            self.swap.num_queried_tokens += len(sequence.token_ids) - num_hit_tokens
            self.swap.num_hit_tokens += num_brought_in * self.block_size

    def prefetch(self, sequence: Sequence) -> bool:
        """Where a sequence hits more host blocks than a step may bring in: brings in some for a later step.

        Then the sequence has no blocks and waits. The caller has seen that the pool has blocks for it, and sends the
        step that is being planned in any case.
        """
        if self.swap is None or len(sequence.host_hits) <= self.swap.room:
            return False
        lane, hits = sequence.lane, sequence.host_hits[: self.swap.room]
        self.swap.drop(sequence.host_hits[len(hits) :])
        sequence.host_hits = []
        sequence.num_prefetched_blocks += len(hits)
        blocks = self._bring_in(hits, lane, self.swap)
        self._retire(reversed(blocks), lane, self.lanes[lane].planned_step)
        self.abandon(sequence)
        return True

    def num_blocks_needed(self, chunks: Iterable[tuple[Sequence, int]]) -> int:
        """Blocks that `allocate` would take from the pool for these sequences and their numbers of new tokens."""
        needed = 0
        writers: dict[Block, int] = {}
        for sequence, num_new_tokens in chunks:
            end = sequence.num_computed_tokens + num_new_tokens
            needed += max(-(-end // self.block_size) - len(sequence.blocks), 0)
            if (shared := self._shared_write(sequence)) is not None:
                block = sequence.blocks[shared]
                writers[block] = writers.get(block, 0) + 1
        for block, count in writers.items():
            # Where all who share it write it, the last of them has it for itself.
            is_left = block.prefix is None and block.ref_count - block.retiring == count
            needed += count - is_left
        return needed

    def allocate(self, sequence: Sequence, num_new_tokens: int) -> Allocation:
        """Makes room for the KV of `num_new_tokens` more tokens; the caller has seen that the pool has the blocks."""
        blocks, num_kept, copies = sequence.blocks, sequence.num_sent_blocks, []
        if sequence.host_hits and self.swap is not None:
            blocks += self._bring_in(sequence.host_hits, sequence.lane, self.swap)
            sequence.host_hits = []
        shared = self._shared_write(sequence)
        if shared is not None:
            copy = self._take(sequence.lane)
            old, blocks[shared] = blocks[shared], copy
            if sequence.num_computed_tokens % self.block_size:
                copies.append((old.id, copy.id))
                self.num_copies += 1
            self._retire([old], sequence.lane, self.lanes[sequence.lane].planned_step)
            num_kept = min(num_kept, shared)
        end = sequence.num_computed_tokens + num_new_tokens
        while len(blocks) * self.block_size < end:
            blocks.append(self._take(sequence.lane))
        sequence.num_sent_blocks = len(blocks)
        return Allocation(num_kept, blocks[num_kept:], copies)

    def hash_full_blocks(self, sequence: Sequence) -> None:
        """Makes the blocks findable that are full of known tokens which are computed or planned."""
        if not self.prefix_caching:
            return
        num_full = min(sequence.num_computed_tokens, len(sequence.token_ids)) // self.block_size
        for i in range(sequence.num_hashed_blocks, num_full):
            hash_, tokens = self._content(sequence, i)
            key, lane, step = sequence.request.extra_key, sequence.lane, sequence.last_step
            prefix = CachedPrefix(hash_, sequence.known_prefix, tokens, key, lane, step)
            sequence.known_prefix = self.prefixes.insert(sequence.blocks[i], prefix)
            sequence.num_hashed_blocks = i + 1

    def fork(self, parent: Sequence, child: Sequence, num_tokens: int) -> None:
        """Shares the blocks of the parent's first `num_tokens` tokens, which are planned, with a child that has none.

        Whoever of them writes on first in a block that is not full gets a copy of it.
        """
        for block in parent.blocks[: -(-num_tokens // self.block_size)]:
            self.pool.acquire(block)
            child.blocks.append(block)
        child.num_computed_tokens = num_tokens
        # Its shared blocks are written by the parent's step.
        child.last_step = parent.last_step
        child.num_hashed_blocks = child.num_computed_tokens // self.block_size
        if self.prefix_caching and child.num_hashed_blocks:
            child.known_prefix = self._prefix_at(parent, child.num_hashed_blocks)
        child.block_hashes = parent.block_hashes[: child.num_hashed_blocks]
        # Its last block is shared now, so it has to ask before it writes on.
        parent.decode_end = 0

    def release(self, sequence: Sequence) -> None:
        """Lets go of a sequence's blocks once the steps in flight that name them are acknowledged."""
        if self.journal is not None and sequence.num_hashed_blocks:
            self.journal.use(sequence.blocks[sequence.num_hashed_blocks - 1])
        # Last block first: a prefix must outlive what was computed after it.
        self._retire(reversed(sequence.blocks), sequence.lane, sequence.last_step)
        self._reset(sequence)

    def acknowledge(self, lane_index: int, step: int) -> None:
        """An executor has computed everything up to `step`: what it filled counts, and what waited for it is free."""
        lane = self.lanes[lane_index]
        lane.acknowledged_step = step
        if self.journal is not None:
            self.journal.acknowledge(lane_index, step)
        if self.swap is not None:
            self.swap.acknowledge(lane_index, step)
        if self.prefixes.listener is not None:
            self.prefixes.listener.acknowledge(lane_index, step)
        for done in [planned for planned in lane.retiring if planned <= step]:
            for block in lane.retiring.pop(done):
                block.retiring -= 1
                self.pool.release(block)

    def lose_lane(self, lane_index: int) -> None:
        """An executor is dead and what it had in flight is void; its sequences have let go of their blocks.

        Blocks that steps in flight were to fill may be half written, so nobody finds them again.
        """
        lane = self.lanes[lane_index]
        for block in self.pool.blocks:
            prefix = block.prefix
            if prefix is not None and prefix.lane == lane_index and prefix.step > lane.acknowledged_step:
                self.prefixes.evict(block)
        if self.swap is not None:
            self.swap.lose_lane(lane_index)
        self.acknowledge(lane_index, lane.planned_step)

    def forget_all(self) -> None:
        """The memory of the pool is gone, and with it what every block held. No sequence has blocks.

        What the host has stays.
        """
        self.prefixes.clear()

    def check_integrity(self, sequences: list[Sequence], *, deep: bool = False) -> None:
        """Recounts every reference: free + cached + held = total, nothing leaked, nothing freed twice.

        O(held blocks); `deep` also walks the free list and the index. Raises AssertionError.
        """
        references: dict[int, int] = {}
        for block in (block for sequence in sequences for block in sequence.blocks):
            references[block.id] = references.get(block.id, 0) + 1
        for block in (block for lane in self.lanes for blocks in lane.retiring.values() for block in blocks):
            references[block.id] = references.get(block.id, 0) + 1
        for block_id, count in references.items():
            assert self.pool.blocks[block_id].ref_count == count, f"{self.pool.blocks[block_id]} has {count} users"
        assert len(references) == self.pool.num_held, f"{self.pool.num_held} held, {len(references)} named"
        for sequence in sequences:
            if sequence.num_computed_tokens < sequence.decode_end:
                last = sequence.blocks[-1]
                assert last.is_writable, f"{sequence} would write {last}"
                assert self.journal is None or last not in self.journal, f"{sequence} would write {last}, which counts"
                room = len(sequence.blocks) * self.block_size
                assert sequence.num_computed_tokens < room, f"{sequence} would write past its blocks"
        total = self.pool.num_free + self.pool.num_cached + self.pool.num_held
        assert total == self.pool.num_usable, f"{total} blocks accounted for of {self.pool.num_usable}"
        if self.swap is not None:
            self.swap.check(deep=deep)
        if deep:
            self.pool.check_list()
            self.prefixes.check()

    def _shared_write(self, sequence: Sequence) -> int | None:
        """The index of the block that the next token would be written into although it must not."""
        index = sequence.num_computed_tokens // self.block_size
        if index >= len(sequence.blocks) or sequence.blocks[index].is_writable:
            return None
        return index

    def _content(self, sequence: Sequence, index: int) -> tuple[bytes, bytes]:
        """Hash and tokens of a sequence's block, which is full. Blocks are asked for in order, and hashed once."""
        size, hashes = self.block_size, sequence.block_hashes
        tokens = sequence.token_ids[index * size : (index + 1) * size].tobytes()
        if index == len(hashes):
            hashes.append(chain_hash(hashes[-1] if hashes else b"", tokens, sequence.request.extra_key))
        return hashes[index], tokens

    def _take(self, lane: int) -> Block:
        """A block for the step of a lane that is being planned, which may overwrite it."""
        block = self.pool.take()
        if (prefix := block.prefix) is not None:
            self.prefixes.evict(block)
            if self.swap is not None:
                self.swap.store(prefix, block.id, lane, self.lanes[lane].planned_step)
        return block

    def _adopt_copies(self, sequence: Sequence, swap: SwapTier) -> None:
        """Goes on with a sequence's longest known prefix among the host's blocks."""
        for i in range(len(sequence.blocks), sequence.max_prefix_hit // self.block_size):
            hash_, tokens = self._content(sequence, i)
            parent, extra_key = sequence.known_prefix, sequence.request.extra_key
            copy = swap.find(hash_, parent, tokens, extra_key, sequence.lane)
            if copy is None:
                return
            swap.hold(copy)
            sequence.host_hits.append(copy)
            sequence.known_prefix = copy.prefix

    def _bring_in(self, hits: list[HostCopy], lane: int, swap: SwapTier) -> list[Block]:
        """Has the step that is being planned copy host blocks into blocks of the pool, which are findable at once."""
        step = self.lanes[lane].planned_step
        blocks = swap.bring_in(hits, lambda: self._take(lane), lane, step)
        for hit, block in zip(hits, blocks, strict=True):
            known = hit.prefix
            content = CachedPrefix(known.hash, known.parent, known.tokens, known.extra_key, lane, step)
            self.prefixes.insert(block, content)
        return blocks

    def _retire(self, blocks: Iterable[Block], lane_index: int, step: int) -> None:
        lane = self.lanes[lane_index]
        if step <= lane.acknowledged_step:
            for block in blocks:
                self.pool.release(block)
            return
        waiting = lane.retiring.setdefault(step, [])
        for block in blocks:
            block.retiring += 1
            waiting.append(block)

    @staticmethod
    def _prefix_at(sequence: Sequence, num_blocks: int) -> CachedPrefix | None:
        """The prefix that a sequence's first `num_blocks` hashed blocks make."""
        prefix = sequence.known_prefix
        for _ in range(sequence.num_hashed_blocks - num_blocks):
            prefix = prefix.parent if prefix else None
        return prefix

    @staticmethod
    def _reset(sequence: Sequence) -> None:
        sequence.blocks = []
        sequence.host_hits = []
        sequence.known_prefix = None
        sequence.num_computed_tokens = sequence.num_hashed_blocks = sequence.num_sent_blocks = 0
        sequence.decode_end = 0
