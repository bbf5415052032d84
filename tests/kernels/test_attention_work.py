"""The work of an attention launch: every section of every tile once, within its bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.kernels.attention_work import (
    ITEM,
    MERGE,
    MERGE_ROWS,
    SECTION,
    TILE_ROWS,
    AttentionWork,
    PlannedWork,
    WorkShape,
)

shapes = st.builds(WorkShape, st.integers(1, 9), st.integers(1, 100), st.integers(1, 300))
lengths = st.lists(
    st.tuples(st.integers(0, 200), st.integers(0, 9000)).map(lambda pair: (pair[0], sum(pair))), max_size=8
)


def plan(shape: WorkShape, lens: list[tuple[int, int]]) -> PlannedWork:
    query_start = np.cumsum([0, *(query for query, _ in lens)])
    return shape.plan(query_start, [context for _, context in lens])


def tiles_of(shape: WorkShape, lens: list[tuple[int, int]]) -> dict[tuple[int, int], tuple[int, int]]:
    """(sequence, first row) → (rows, sections), a tile after the other."""
    tiles = {}
    for sequence, (query, context) in enumerate(lens):
        num_rows = query * shape.group if context else 0
        for first in range(0, num_rows, TILE_ROWS):
            rows = min(TILE_ROWS, num_rows - first)
            num_keys = context - query + (first + rows - 1) // shape.group + 1
            tiles[sequence, first] = rows, -(-num_keys // SECTION)
    return tiles


@settings(deadline=None)
@given(shapes, lengths)
def test_every_section_of_every_tile_once(shape, lens):
    work = plan(shape, lens)
    tiles = tiles_of(shape, lens)
    done = {tile: [] for tile in tiles}
    places: dict[tuple[int, int], int] = {}
    for sequence, row, first, count, place in work.items.tolist():
        assert count > 0
        done[sequence, row] += range(first, first + count)
        if place < 0:
            assert count == tiles[sequence, row][1]
        else:
            assert places.setdefault((sequence, row), place) == place
    assert {tile: sorted(sections) for tile, sections in done.items()} == {
        tile: list(range(sections)) for tile, (_, sections) in tiles.items()
    }

    # Tiles that were split share no partial row, and each of their rows is merged once.
    taken = [(place, place + tiles[tile][0] * tiles[tile][1]) for tile, place in places.items()]
    starts_and_ends = [bound for span in sorted(taken) for bound in span]
    assert starts_and_ends == sorted(starts_and_ends)
    assert max(starts_and_ends, default=0) == work.partial_rows
    assert sorted(work.merges.tolist()) == sorted(
        [sequence, row + ahead, tiles[sequence, row][1], place + ahead, tiles[sequence, row][0]]
        for (sequence, row), place in places.items()
        for ahead in range(0, tiles[sequence, row][0], MERGE_ROWS)
    )
    assert work.counts.tolist() == [len(work.items), len(work.merges)]


@settings(deadline=None)
@given(shapes, lengths, st.integers(0, 50), st.integers(0, 5), st.integers(0, 1000))
def test_capacity(shape, lens, more_tokens, more_seqs, more_context):
    work = plan(shape, lens)
    longest = max((context for _, context in lens), default=1)
    num_tokens = sum(query for query, _ in lens)
    capacity = shape.capacity(num_tokens + more_tokens, len(lens) + more_seqs, max(1, longest + more_context))
    assert len(work.items) <= capacity.items
    assert len(work.merges) <= capacity.merges
    assert work.partial_rows <= capacity.partial_rows
    padded = work.padded(capacity)
    assert (padded.items.shape, padded.merges.shape) == ((capacity.items, len(ITEM)), (capacity.merges, len(MERGE)))
    assert np.array_equal(padded.items[: padded.counts[0]], work.items)
    assert np.array_equal(padded.merges[: padded.counts[1]], work.merges)


def test_a_batch_that_keeps_the_gpu_busy_is_not_split():
    work = plan(WorkShape(8, 4, 264), [(1, 2000)] * 256)
    assert len(work.items) == 256
    assert len(work.merges) == work.partial_rows == 0


def test_a_long_context_alone_is_split():
    shape = WorkShape(8, 4, 264)
    work = plan(shape, [(1, 100 * SECTION)])
    count = work.items[:, ITEM.index("num_sections")]
    assert count.max() <= 2  # 800 sections of 8 KV heads for 264 programs, twice as many runs
    assert work.partial_rows == 100 * shape.group


def test_partial_results_have_bounds():
    """Where there is no room for them, tiles are walked, the longest first."""
    shape = WorkShape(1, 64, 10_000)
    work = plan(shape, [(2, 300_000), (2, 400_000), (2, 200_000)])
    assert 0 < work.partial_rows <= 1 << 17
    counts = work.items[:, ITEM.index("num_sections")]
    walked = counts[work.items[:, ITEM.index("place")] < 0]
    assert len(walked) > 0
    assert sorted(counts.tolist(), reverse=True) == counts.tolist()


def test_padding_has_no_work():
    shape = WorkShape(2, 4, 16)
    real = plan(shape, [(1, 700), (1, 30)])
    padded = plan(shape, [(1, 700), (1, 30), (1, 0), (1, 0)])
    assert np.array_equal(real.items, padded.items)
    assert plan(shape, [(1, 0)]).counts.tolist() == plan(shape, []).counts.tolist() == [0, 0]


@pytest.mark.parametrize("name", ["items", "merges", "counts"])
def test_wrong_tensor_is_named(name):
    fields = {
        "items": torch.zeros(3, len(ITEM), dtype=torch.int32),
        "merges": torch.zeros(3, len(MERGE), dtype=torch.int32),
        "counts": torch.zeros(2, dtype=torch.int32),
    }
    with pytest.raises(ValueError, match=f"^{name} must"):
        AttentionWork(**(fields | {name: fields[name].long()}), partial_rows=0)
