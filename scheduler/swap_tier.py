"""The swap tier: blocks of host memory behind the pool that executors compute on.

    a cached block of the pool is evicted     its content is copied to a host block (swap-out) and keeps its hash
    a prefix hit finds a content here         it is copied to a block of the pool (swap-in); the host keeps its copy

So preemption swaps without a mechanism of its own: the full blocks of a preempted sequence are cached blocks.

Moves are part of a plan. An executor takes plans in order, and of a plan first the swap-outs, then the swap-ins, then
copies, then the forward pass. What may be read when follows from four rules.

- A block of the pool is swapped out by the plan that is going to overwrite it. It was unreferenced when it was taken,
  so all steps that wrote or read it are acknowledged, whatever their lane, and no other plan names it before this one
  is acknowledged.
- A host block that a plan names, as source or destination, is held until that plan is acknowledged. So none is
  overwritten while a step in flight, of any lane, may still read or write it.
- A copy can be read by later plans of the lane that makes it, and by other lanes once that plan is acknowledged. The
  same holds for a block of the pool that is swapped in: to the prefix cache it is like one that the step computes.
- Steps in flight of an executor that is lost are never sent again: what they were to do is planned anew. The copies
  that they were to make are forgotten, as they may be half written; those that they were to read stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakValueDictionary

from quire.scheduler.block_pool import Block, BlockPool, CachedPrefix

# What any step may bring in: some milliseconds, over PCIe or within a host's memory. By their nominal bandwidths; not
# measured on a GPU.
_MAX_STEP_BYTES: Final = 128 * 2**20


def max_moves(block_bytes: int, block_size: int, max_num_batched_tokens: int) -> int:
    """Blocks that a step brings in at most while other sequences wait for it.

    If that is more, as many as it could compute instead, which takes far longer.
    """
    return max(_MAX_STEP_BYTES // block_bytes, max_num_batched_tokens // block_size, 1)


# Not frozen, for the same reason as CachedPrefix.
@dataclass(slots=True, eq=False)
class HostCopy:
    """A content that a host block has, once a step of a lane has copied it there."""

    prefix: CachedPrefix
    block: Block
    lane: int
    step: int


@dataclass(slots=True)
class SwapMoves:
    """Block ids of a plan's moves: `out` from the pool to the host, `in` from the host to the pool."""

    out_sources: list[int] = field(default_factory=list)
    out_destinations: list[int] = field(default_factory=list)
    in_sources: list[int] = field(default_factory=list)
    in_destinations: list[int] = field(default_factory=list)


class SwapTier:
    """Which contents host blocks have, and the moves of the plan that is being made."""

    def __init__(self, num_blocks: int, *, max_moves: int, num_lanes: int = 1, num_usable: int | None = None) -> None:
        self.pool = BlockPool(num_blocks, num_usable)
        self._max_moves = max_moves
        self._copies: dict[bytes, HostCopy] = {}
        # Contents that copies have or continue. One that is computed anew becomes the same object again, so that what
        # continues it is found.
        self._contents: WeakValueDictionary[bytes, CachedPrefix] = WeakValueDictionary()
        self._moves = SwapMoves()
        self._acknowledged_steps = [0] * num_lanes
        # References that end when a step in flight is acknowledged: by lane, by step.
        self._held: list[dict[int, list[Block]]] = [{} for _ in range(num_lanes)]
        # Tokens of sequences that were not in the pool when these first ran, and those that were found here.
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0
        self.num_swapped_out = 0
        self.num_swapped_in = 0

    @property
    def room(self) -> int:
        """Blocks that the plan may still bring in."""
        return max(self._max_moves - len(self._moves.in_sources), 0)

    def find(
        self, hash_: bytes, parent: CachedPrefix | None, tokens: bytes, extra_key: bytes, lane: int
    ) -> HostCopy | None:
        """The copy of a content that the next plan of a lane may read."""
        copy = self._copies.get(hash_)
        if copy is None or not copy.prefix.is_of(parent, tokens, extra_key):
            return None
        is_there = copy.lane == lane or copy.step <= self._acknowledged_steps[copy.lane]
        return copy if is_there else None

    def hold(self, copy: HostCopy) -> None:
        """Keeps a copy for a sequence that may be planned; `drop` or `bring_in` ends it."""
        self.pool.acquire(copy.block)

    def drop(self, copies: Sequence[HostCopy]) -> None:
        """Lets go of copies that were held, which continue each other."""
        for copy in reversed(copies):  # as KvCache.release: a prefix must outlive what continues it
            self.pool.release(copy.block)

    def bring_in(self, copies: Sequence[HostCopy], take: Callable[[], Block], lane: int, step: int) -> list[Block]:
        """Has the plan copy what is held, and continues each other, into blocks that `take` gives; returns these."""
        self._held[lane].setdefault(step, []).extend(copy.block for copy in reversed(copies))
        self.num_swapped_in += len(copies)
        # First, as `take` may store what it evicts, and this says how much.
        self._moves.in_sources += [copy.block.id for copy in copies]
        blocks = [take() for _ in copies]
        self._moves.in_destinations += [block.id for block in blocks]
        return blocks

    def store(self, prefix: CachedPrefix, block_id: int, lane: int, step: int) -> None:
        """Has the plan copy a block of the pool that it is about to overwrite, unless the host has that already.

        Where all host blocks are held, or the plan moves enough, the content is lost.
        """
        known = self._copies.get(prefix.hash)
        if known is not None and known.prefix is prefix:
            self._touch(known.block)
            return
        # As much as it computes, and as much as it brings in.
        most = self._max_moves + len(self._moves.in_sources)
        if len(self._moves.out_sources) >= most or not self.pool.num_available:
            return
        if known is not None:  # the same hash after a parent that nobody has any more
            self._forget(known)
        block = self.pool.take()
        if block.prefix is not None:
            self._forget(self._copies[block.prefix.hash])
        block.prefix = prefix
        self._copies[prefix.hash] = HostCopy(prefix, block, lane, step)
        self._remember(prefix)
        self._held[lane].setdefault(step, []).append(block)
        self._moves.out_sources.append(block_id)
        self._moves.out_destinations.append(block.id)
        self.num_swapped_out += 1

    def known(self, prefix: CachedPrefix) -> CachedPrefix:
        """The object that stands for a content which a step is going to write, and which the pool does not have."""
        known = self._contents.get(prefix.hash)
        if known is None or not known.is_of(prefix.parent, prefix.tokens, prefix.extra_key):
            return prefix
        known.lane, known.step = prefix.lane, prefix.step
        return known

    def take_moves(self) -> SwapMoves | None:
        """The moves of the plan that is complete now, if it has any."""
        moves = self._moves
        if not moves.out_sources and not moves.in_sources:
            return None
        self._moves = SwapMoves()
        return moves

    def acknowledge(self, lane: int, step: int) -> None:
        """An executor has computed everything up to `step`."""
        self._acknowledged_steps[lane] = step
        held = self._held[lane]
        for done in [planned for planned in held if planned <= step]:
            for block in held.pop(done):
                self.pool.release(block)

    def lose_lane(self, lane: int) -> None:
        """An executor is dead: forgets what its steps in flight were to copy. `acknowledge` ends their references."""
        for step, blocks in self._held[lane].items():
            for block in blocks:
                copy = self._copies.get(block.prefix.hash) if block.prefix is not None else None
                if copy is not None and (copy.lane, copy.step) == (lane, step):
                    self._forget(copy)

    def check(self, *, deep: bool = False) -> None:
        """Recounts references while no sequence is being planned; `deep` walks the list too. Raises AssertionError."""
        references: dict[Block, int] = {}
        for block in (block for held in self._held for blocks in held.values() for block in blocks):
            references[block] = references.get(block, 0) + 1
        for block, count in references.items():
            assert block.ref_count == count, f"host {block} has {count} users"
        assert len(references) == self.pool.num_held, f"{self.pool.num_held} host blocks held, {len(references)} named"
        for hash_, copy in self._copies.items():
            assert copy.block.prefix is copy.prefix and copy.prefix.hash == hash_, f"host {copy.block} is not its copy"
        assert self.take_moves() is None, "moves were planned and are in no plan"
        if deep:
            self.pool.check_list()
            assert len(self._copies) == sum(block.prefix is not None for block in self.pool.blocks), "a copy is lost"

    def _forget(self, copy: HostCopy) -> None:
        del self._copies[copy.prefix.hash]
        self.pool.forget(copy.block)

    def _touch(self, block: Block) -> None:
        """Makes it the last that is evicted."""
        self.pool.acquire(block)
        self.pool.release(block)

    def _remember(self, prefix: CachedPrefix | None) -> None:
        while prefix is not None and self._contents.get(prefix.hash) is not prefix:
            self._contents[prefix.hash] = prefix
            prefix = prefix.parent
