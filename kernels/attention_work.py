"""What the programs of one attention launch do: a list made on the host, read on the device.

The rows of a sequence and KV head are its new tokens times the query heads that share the KV head. They are cut into
tiles of TILE_ROWS, and each tile's context into sections of SECTION keys. One program walks over all sections of a
tile, or, where a batch has too few tiles to keep a GPU busy, several take a run of sections each ("flash decoding",
Dao et al., 2023, pytorch.org/blog/flash-decoding). Who computes a section changes no bit: see triton/attention.py.

Nothing here knows block sizes, windows or the cache's type, and nothing imports Triton.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

__all__ = [
    "ITEM",
    "MERGE",
    "SECTION",
    "TILE_ROWS",
    "AttentionWork",
    "PlannedWork",
    "WorkCapacity",
    "WorkShape",
    "work_shape",
]

#: Keys of a section. It decides results bit for bit: the same for every batch, model and GPU.
SECTION = 512

#: Rows of a tile: what one warpgroup of Hopper multiplies, and the same elsewhere.
TILE_ROWS = 64

#: Rows that one program of the merge adds up; divides TILE_ROWS.
MERGE_ROWS = 4

# Programs of the launch for each multiprocessor: as many as have room side by side.
_PROGRAMS_PER_PROCESSOR = 2
# Tiles are split into runs so short that a program has about this many: more balance better, fewer merge less.
_RUNS_PER_PROGRAM = 2
# Partial results of all KV heads: rows of head_dim + 2 floats, 68 MB at a head_dim of 128.
_MAX_PARTIAL_ROWS = 1 << 17

#: Columns of an item. `place`: its tile's first partial row (row r of section s is at place + s * tile rows + r), or -1
#: where the item holds all sections of its tile and writes the result.
ITEM = ("sequence", "first_row", "first_section", "num_sections", "place")

#: Columns of a merge: up to MERGE_ROWS rows of a tile that was split. `place` is that of `first_row` in section 0, and
#: `stride` the distance to the next section's, the tile's rows.
MERGE = ("sequence", "first_row", "num_sections", "place", "stride")


# eq=False: comparing tensors element by element is never what a caller of == wants.
@dataclass(frozen=True, slots=True, eq=False)
class AttentionWork:
    """The list on the device. It is read there alone, so a CUDA graph computes whatever was copied to these addresses.

    Attributes:
        items: int32 [at least the items, len(ITEM)].
        merges: int32 [at least the merges, len(MERGE)].
        counts: int32 [2]; how many items and merges there are.
        partial_rows: partial rows of a KV head that the launch makes room for; 0: nothing is split.

    Raises:
        ValueError: a tensor has another dtype or shape.
    """

    items: Tensor
    merges: Tensor
    counts: Tensor
    partial_rows: int

    def __post_init__(self) -> None:
        for name, columns in (("items", len(ITEM)), ("merges", len(MERGE))):
            tensor: Tensor = getattr(self, name)
            if tensor.dtype != torch.int32 or tensor.dim() != 2 or tensor.shape[1] != columns:
                raise ValueError(f"{name} must be int32 [n, {columns}], not {tensor.dtype} {list(tensor.shape)}")
            if not tensor.is_contiguous():
                raise ValueError(f"{name} must be contiguous")
        if self.counts.dtype != torch.int32 or self.counts.shape != (2,):
            raise ValueError(f"counts must be int32 [2], not {self.counts.dtype} {list(self.counts.shape)}")


@dataclass(frozen=True, slots=True, eq=False)
class PlannedWork:
    """The list on the host, as in AttentionWork, no longer than it must be."""

    items: NDArray[np.int32]
    merges: NDArray[np.int32]
    counts: NDArray[np.int32]
    partial_rows: int

    def padded(self, capacity: WorkCapacity) -> PlannedWork:
        """The same in columns whose lengths do not depend on the step, for addresses that never change."""
        items = np.zeros((capacity.items, len(ITEM)), np.int32)
        merges = np.zeros((capacity.merges, len(MERGE)), np.int32)
        items[: len(self.items)], merges[: len(self.merges)] = self.items, self.merges
        return PlannedWork(items, merges, self.counts, capacity.partial_rows)

    def to(self, device: torch.device) -> AttentionWork:
        """The same on a device, in tensors of its own. A step's staging buffers do without."""
        items, merges, counts = (
            torch.from_numpy(column).to(device) for column in (self.items, self.merges, self.counts)
        )
        return AttentionWork(items, merges, counts, self.partial_rows)


class WorkCapacity(NamedTuple):
    """What the work of any step within some bounds fits into."""

    items: int
    merges: int
    partial_rows: int


class WorkShape(NamedTuple):
    """What work depends on besides a step's lengths: the model's heads and the GPU's size.

    Attributes:
        num_kv_heads: of this executor.
        group: query heads of each.
        num_programs: of a launch.
    """

    num_kv_heads: int
    group: int
    num_programs: int

    def plan(self, query_start: ArrayLike, context_lens: ArrayLike) -> PlannedWork:
        """The work of a step, from its lengths on the host (as in AttentionMetadata).

        A sequence without context or new tokens has none, so its rows of the result are left as they were: that is how
        a batch is padded.
        """
        tiles = _tiles(np.asarray(query_start, np.int64), np.asarray(context_lens, np.int64), self.group)
        limit = max(1, -(-int(tiles.sections.sum()) * self.num_kv_heads // (_RUNS_PER_PROGRAM * self.num_programs)))
        long = tiles.sections > limit
        if not long.any():
            return _planned(_items(tiles, np.ones_like(tiles.rows), np.full_like(tiles.rows, -1)), _NO_MERGES, 0)
        partial_rows = np.where(long, tiles.sections * tiles.rows, 0)
        ends = partial_rows.cumsum()
        # Where room runs out, the rest walk.
        split = long & (ends <= _MAX_PARTIAL_ROWS // self.num_kv_heads)
        places = np.where(split, ends - partial_rows, -1)
        items = _items(tiles, np.where(split, -(-tiles.sections // limit), 1), places)
        split_tiles = _Tiles(*(column[split] for column in tiles))
        return _planned(items, _merges(split_tiles, places[split]), int(partial_rows[split].sum()))

    def capacity(self, num_tokens: int, num_seqs: int, max_model_len: int) -> WorkCapacity:
        """Bounds on the work of any step with at most so many new tokens, sequences and tokens of context."""
        rows = num_tokens * self.group
        tiles = rows // TILE_ROWS + min(num_seqs, num_tokens)
        # All sections of a step are at most so many times the limit of a run, and a tile that is split has more.
        runs = _RUNS_PER_PROGRAM * self.num_programs // self.num_kv_heads
        split_tiles = min(tiles, runs)
        split_rows = min(rows, split_tiles * TILE_ROWS)
        sections = -(-max_model_len // SECTION)
        if sections == 1:
            return WorkCapacity(tiles, 0, 0)
        return WorkCapacity(
            items=tiles + runs,
            merges=min(split_tiles * (TILE_ROWS // MERGE_ROWS), split_rows // MERGE_ROWS + split_tiles),
            partial_rows=min(split_rows * sections, _MAX_PARTIAL_ROWS // self.num_kv_heads),
        )


def work_shape(num_heads: int, num_kv_heads: int, device: torch.device) -> WorkShape:
    """The shape of a model's work on a device."""
    return WorkShape(num_kv_heads, num_heads // num_kv_heads, _num_programs(device))


@cache
def _num_programs(device: torch.device) -> int:
    if device.type != "cuda":
        return 4  # Triton's interpreter, where programs run one after the other
    return _PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


class _Tiles(NamedTuple):
    """Columns of tiles, int64 [num_tiles] each; `sections` counts those that its last row sees."""

    sequence: NDArray[np.int64]
    first_row: NDArray[np.int64]
    rows: NDArray[np.int64]
    sections: NDArray[np.int64]


def _tiles(query_start: NDArray[np.int64], context_lens: NDArray[np.int64], group: int) -> _Tiles:
    query_lens = np.diff(query_start)
    rows = np.where(context_lens > 0, query_lens * group, 0)
    sequence, nth = _repeat(-(-rows // TILE_ROWS))
    first_row = nth * TILE_ROWS
    tile_rows = np.minimum(rows[sequence] - first_row, TILE_ROWS)
    last_query = (first_row + tile_rows - 1) // group
    num_keys = (context_lens - query_lens)[sequence] + last_query + 1
    return _Tiles(sequence, first_row, tile_rows, -(-num_keys // SECTION))


def _items(tiles: _Tiles, runs: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int32]:
    """Each tile's sections in `runs` runs of about the same length."""
    tile, nth = _repeat(runs)
    num_runs, sections = runs[tile], tiles.sections[tile]
    first = nth * sections // num_runs
    count = (nth + 1) * sections // num_runs - first
    items = _rows(tiles.sequence[tile], tiles.first_row[tile], first, count, places[tile])
    # The longest first: programs take items in turn, and the last ones should be short.
    return items[np.argsort(-count, kind="stable")]


def _merges(tiles: _Tiles, places: NDArray[np.int64]) -> NDArray[np.int32]:
    tile, nth = _repeat(-(-tiles.rows // MERGE_ROWS))
    ahead = nth * MERGE_ROWS
    first_row, place = tiles.first_row[tile] + ahead, places[tile] + ahead
    return _rows(tiles.sequence[tile], first_row, tiles.sections[tile], place, tiles.rows[tile])


def _planned(items: NDArray[np.int32], merges: NDArray[np.int32], partial_rows: int) -> PlannedWork:
    return PlannedWork(items, merges, np.array([len(items), len(merges)], np.int32), partial_rows)


def _repeat(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each index as often as `counts` says, and which of its repetitions it is: [2, 1] → [0, 0, 1], [0, 1, 0]."""
    index = np.repeat(np.arange(len(counts)), counts)
    return index, np.arange(len(index)) - (counts.cumsum() - counts)[index]


def _rows(*columns: NDArray[np.int64]) -> NDArray[np.int32]:
    rows = np.empty((len(columns[0]), len(columns)), np.int32)
    for index, column in enumerate(columns):
        rows[:, index] = column
    return rows


_NO_MERGES: Final = np.empty((0, len(MERGE)), np.int32)
