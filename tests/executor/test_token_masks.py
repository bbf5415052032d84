"""Masks over the vocabulary, alone and several on one row."""

from __future__ import annotations

import numpy as np
from support.sampling import make_batch

from quire.executor.structured import StepMasks
from quire.executor.token_masks import mask_of, restrict
from quire.kernels import SamplingBatch


def _allowed(batch: SamplingBatch, row: int) -> set[int]:
    assert batch.allowed_masks is not None
    words = batch.allowed_masks[batch.rows["mask_row"][row]]
    return set(np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist())


def test_a_mask_allows_its_tokens_and_no_others():
    mask = mask_of([0, 31, 32, 69, 70, 10**6], 70)
    assert mask.tolist() == [1 | 1 << 31, 1, 1 << 5]


def test_rows_of_both_kinds_live_in_one_array():
    batch = make_batch([{"allowed": [1, 2, 40]}, {}, {"allowed": [5]}, {}], 64)
    result = restrict(batch, {0: mask_of([2, 3, 40], 64), 3: mask_of([7], 64)})
    assert _allowed(result, 0) == {2, 40}, "both masks hold"
    assert _allowed(result, 2) == {5}
    assert _allowed(result, 3) == {7}
    assert result.rows["mask_row"][1] == -1


def test_masks_of_different_widths():
    batch = make_batch([{"allowed": [1, 2]}, {}], 32)
    result = restrict(batch, {0: mask_of([2, 90], 96), 1: mask_of([64], 96)})
    assert _allowed(result, 0) == {2}
    assert _allowed(result, 1) == {64}


def test_without_masks_nothing_changes():
    batch = make_batch([{}], 32)
    assert restrict(batch, {}) is batch


def test_a_grammar_leaves_the_allowed_tokens_of_other_rows_alone():
    batch = make_batch([{}, {"allowed": [5]}, {}], 64)
    grammar = StepMasks(np.stack([mask_of([7, 8], 64)]), np.array([-1, -1, 0], np.int32))
    result = grammar.apply(batch)
    assert result.rows["mask_row"][0] == -1
    assert _allowed(result, 1) == {5}
    assert _allowed(result, 2) == {7, 8}
