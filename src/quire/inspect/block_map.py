"""The state of each block, for a picture: as the live page has it, and what only an inspection knows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from quire.inspect.inspection import Inspection
from quire.inspect.journal import RecordState


@dataclass(frozen=True, slots=True)
class BlockClass:
    """Blocks that are drawn alike. The colour is a web colour, #rrggbb."""

    label: str
    colour: str


# The page's colours (gateway/page/base.css, the light ones), and two that only an inspection needs.
FREE: Final = BlockClass("free", "#e6e9ee")
CACHED: Final = BlockClass("cached: its content is known", "#93cdb9")
HELD: Final = BlockClass("held by one", "#4a7ee6")
# By the least number of holders.
SHARED: Final = {
    2: BlockClass("shared by 2", "#8150d8"),
    3: BlockClass("shared by 3 or 4", "#bd3a9a"),
    5: BlockClass("shared by 5 or more", "#d9432c"),
}
UNREACHABLE: Final = BlockClass("unreachable: what it continues is gone", "#b8c2cc")
NO_MEMORY: Final = BlockClass("no memory yet", "#f7f8fa")
WRONG: Final = BlockClass("damaged or leaked", "#15191f")

# The order of legends.
CLASSES: Final = (FREE, NO_MEMORY, UNREACHABLE, CACHED, HELD, *SHARED.values(), WRONG)


@dataclass(frozen=True, slots=True)
class BlockMap:
    """The class of each block, by its id."""

    title: str
    blocks: list[BlockClass]

    @property
    def legend(self) -> list[tuple[BlockClass, int]]:
        """The classes that there are, and how many blocks each has."""
        counts = Counter(self.blocks)
        return [(found, counts[found]) for found in CLASSES if counts[found]]


def draw_map(inspection: Inspection) -> BlockMap | None:
    """What is known of each block; None where nothing is, since the header is damaged."""
    if inspection.layout is None or (inspection.journal is None and inspection.scheduler is None):
        return None
    wrong = {finding.block for finding in inspection.findings}
    blocks = [
        WRONG if block in wrong else _class_of(inspection, block) for block in range(inspection.layout.num_blocks)
    ]
    return BlockMap(f"{inspection.name}: {len(blocks):,} blocks of {inspection.layout.block_size} tokens", blocks)


def _class_of(inspection: Inspection, block: int) -> BlockClass:
    view = inspection.scheduler
    if view is None:
        assert inspection.journal is not None
        of_record = {RecordState.KNOWN: CACHED, RecordState.UNREACHABLE: UNREACHABLE, RecordState.DAMAGED: WRONG}
        return of_record.get(inspection.journal.states[block], FREE)
    if block >= view.state.num_usable_blocks:
        return NO_MEMORY
    references = view.ref_counts[block]
    if references == 0:
        return CACHED if view.content_numbers[block] else FREE
    return next((SHARED[least] for least in sorted(SHARED, reverse=True) if references >= least), HELD)
