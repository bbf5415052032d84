"""Penalties against transformers' processor and the definition."""

from __future__ import annotations

import numpy as np
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from quire.executor.penalties import PenalisedRow, Penalties, TokenCounts, apply_penalties


def counts_of(prompt: list[int], output: list[int]) -> TokenCounts:
    return TokenCounts(np.array(prompt, np.int64), np.array(output, np.int64))


def test_counts_grow_as_if_made_anew() -> None:
    counts = counts_of([3, 4, 4], [4])
    for token in (9, 4, 9, 7, 3):
        counts.add(token)
    expected = counts_of([3, 4, 4], [4, 9, 4, 9, 7, 3])
    assert dict(zip(counts.ids, counts.counts, strict=True)) == dict(zip(expected.ids, expected.counts, strict=True))
    assert dict(zip(counts.ids.tolist(), counts.counts.tolist(), strict=True)) == {3: 1, 4: 2, 9: 2, 7: 1}


def test_counts_of_nothing_grow_too() -> None:
    counts = counts_of([], [])
    for token in range(5):
        counts.add(token)
    assert counts.ids.tolist() == list(range(5))


def test_repetition_equals_transformers() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 50, generator=generator) * 3
    prompt, output = [3, 4, 4, 9], [9, 20, 20, 3]
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt + output]), logits.clone())
    apply_penalties(logits, [PenalisedRow(0, Penalties(repetition=1.7), counts_of(prompt, output))])
    torch.testing.assert_close(logits, expected)


def test_frequency_and_presence_count_the_output_alone() -> None:
    logits = torch.zeros(3, 10)
    apply_penalties(logits, [PenalisedRow(1, Penalties(frequency=0.5, presence=0.25), counts_of([1, 2], [2, 7, 2, 2]))])
    expected = torch.zeros(3, 10)
    expected[1, 2], expected[1, 7] = -(3 * 0.5 + 0.25), -(0.5 + 0.25)
    assert torch.equal(logits, expected)


def test_each_row_has_its_own() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0]]).repeat(3, 1)
    apply_penalties(
        logits,
        [
            PenalisedRow(2, Penalties(2.0, 1.0, 1.0), counts_of([0, 1], [])),
            PenalisedRow(0, Penalties(presence=0.5), counts_of([1], [2])),
        ],
    )
    assert logits.tolist() == [[2.0, -2.0, 1.5], [2.0, -2.0, 2.0], [1.0, -4.0, 2.0]]


def test_without_rows_nothing_happens() -> None:
    assert Penalties().neutral and not Penalties(presence=0.1).neutral
    apply_penalties(torch.zeros(1, 2), [])
