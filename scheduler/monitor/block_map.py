"""The state of every block of the pool, in one byte each, kept up to date from what the pool says has changed.

To read the whole pool takes a tenth of a second for a million blocks, so it is read once, when somebody begins to look,
and in parts. From then on the pool notes which blocks change.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from quire.columns import pack_u32
from quire.scheduler.block_pool import Block, BlockPool
from quire.v1 import monitor_pb2

# Blocks that are read at a time, in less than a millisecond.
_PART: Final = 1024
# A change takes five bytes, and a block of the complete map one.
_MOST_CHANGED: Final = 1 / 5
# States that remember what changed before them.
_HISTORY: Final = 64


def state_of(block: Block) -> int:
    """As BlockMap.states has it: 0 free, 1 cached, 1 + n held by n."""
    return min(1 + block.ref_count, 255) if block.ref_count else int(block.prefix is not None)


class BlockStates:
    """What onlookers see of the pool. Open it before all else, and close it when nobody looks."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._most_changed = pool.num_blocks * _MOST_CHANGED
        self._states = bytearray()
        # Counts the updates.
        self.version = 0
        # The ids that changed with each of the latest updates, of which the last led to `version`; no more in all than
        # are worth telling.
        self._changes: deque[list[int]] = deque(maxlen=_HISTORY)

    @property
    def is_complete(self) -> bool:
        """Whether the whole pool has been read."""
        return len(self._states) == self._pool.num_blocks

    def open(self) -> None:
        """The pool notes changes from now on."""
        self._pool.changed = set()
        self._states = bytearray()
        self._changes.clear()

    def close(self) -> None:
        """The pool notes nothing any more."""
        self._pool.changed = None
        self._states = bytearray()
        self._changes.clear()

    def read_part(self) -> None:
        """Reads some more of a pool that is not complete yet."""
        start = len(self._states)
        self._states += bytes(map(state_of, self._pool.blocks[start : start + _PART]))

    def update(self) -> None:
        """Takes in what has changed since the last update."""
        assert self._pool.changed is not None, "the map is closed"
        changed, self._pool.changed = self._pool.changed, set()
        for block in changed:
            self._states[block.id] = state_of(block)
        self.version += 1
        self._changes.append([block.id for block in changed])
        while sum(map(len, self._changes)) > self._most_changed:
            self._changes.popleft()

    def since(self, version: int | None) -> monitor_pb2.BlockMap:
        """What has changed after an earlier version; all, for None and where that is shorter or not known any more."""
        num_updates = self.version if version is None else self.version - version
        latest = list(self._changes)[-num_updates:] if num_updates else []
        if version is None or num_updates > len(self._changes):
            return monitor_pb2.BlockMap(is_complete=True, states=bytes(self._states))
        ids = sorted(set().union(*latest))
        return monitor_pb2.BlockMap(block_ids=pack_u32(ids), states=bytes([self._states[i] for i in ids]))
