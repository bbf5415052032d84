"""The KV pool as cells of characters."""

from __future__ import annotations

import enum
from collections import Counter

from quire.columns import unpack_u32
from quire.v1 import monitor_pb2


class Kind(enum.Enum):
    """What a cell shows: a character for terminals without colours, and a colour."""

    FREE = ("·", "bright_black", "free")
    CACHED = ("░", "blue", "cached")
    HELD = ("▓", "green", "held")
    SHARED = ("█", "magenta", "shared")

    def __init__(self, character: str, colour: str, label: str) -> None:
        self.character = character
        self.colour = colour
        self.label = label


def kind_of(state: int) -> Kind:
    """Of a block whose state is as BlockMap has it."""
    return Kind.SHARED if state > 2 else (Kind.FREE, Kind.CACHED, Kind.HELD)[state]


class BlockStates:
    """The latest state of each block, from maps that tell changes only."""

    def __init__(self) -> None:
        self.states = bytearray()

    def update(self, block_map: monitor_pb2.BlockMap) -> None:
        """Takes in the next map of a stream."""
        if block_map.is_complete:
            self.states = bytearray(block_map.states)
            return
        for block_id, state in zip(unpack_u32(block_map.block_ids), block_map.states, strict=True):
            self.states[block_id] = state

    def counts(self) -> Counter[Kind]:
        """Blocks by kind."""
        counts: Counter[Kind] = Counter()
        for state, number in Counter(self.states).items():
            counts[kind_of(state)] += number
        return counts

    def cells(self, most: int) -> list[Kind]:
        """At most so many cells, each of equally many blocks: what most of these are, of equals the busiest."""
        per_cell = max(1, -(-len(self.states) // most))
        return [_majority(self.states[i : i + per_cell]) for i in range(0, len(self.states), per_cell)]


def _majority(states: bytearray) -> Kind:
    counts: Counter[Kind] = Counter()
    for state, number in Counter(states).items():
        counts[kind_of(state)] += number
    order = list(Kind)
    return max(counts, key=lambda kind: (counts[kind], order.index(kind)))
