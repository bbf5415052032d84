"""Block tables as columns, made anew only where they have changed.

A table grows at its end. What else happens to it replaces its list (`KvCache` begins a new one for a sequence that has
let go of its blocks) or its last entry (a copy on write, before more is added).
"""

from __future__ import annotations

from array import array

from quire.scheduler.block_pool import Block
from quire.scheduler.sequence import Sequence


class BlockTables:
    """Remembers the tables of the sequences that it was asked for since the last `begin`, or before it."""

    def __init__(self) -> None:
        # The list that a column was made of, and the column.
        self._known: dict[Sequence, tuple[list[Block], array[int]]] = {}
        self._before: dict[Sequence, tuple[list[Block], array[int]]] = {}

    def begin(self) -> None:
        """Forgets what was not asked for since the last call."""
        self._before, self._known = self._known, {}

    def column(self, sequence: Sequence) -> bytes:
        """The ids of a sequence's blocks as a u32 column."""
        blocks = sequence.blocks
        known, ids = self._before.get(sequence, (None, array("I")))
        if known is not blocks or len(ids) > len(blocks):
            ids = array("I")
        elif ids and blocks[len(ids) - 1].id != ids[-1]:
            ids.pop()
        ids.extend([block.id for block in blocks[len(ids) :]])
        self._known[sequence] = blocks, ids
        return ids.tobytes()
