"""Penalties against transformers' processor and the definition."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from quire.executor.penalties import Penalties


def test_repetition_equals_transformers() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 50, generator=generator) * 3
    prompt, output = [3, 4, 4, 9], [9, 20, 20, 3]
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt + output]), logits.clone())[0]
    row = logits[0].clone()
    Penalties(repetition=1.7).apply(row, np.unique(prompt), Counter(output))
    torch.testing.assert_close(row, expected)


def test_frequency_and_presence_count_the_output_alone() -> None:
    row = torch.zeros(10)
    Penalties(frequency=0.5, presence=0.25).apply(row, np.array([1, 2]), {2: 3, 7: 1})
    expected = torch.zeros(10)
    expected[2], expected[7] = -(3 * 0.5 + 0.25), -(0.5 + 0.25)
    assert torch.equal(row, expected)


def test_neutral_penalties_do_nothing() -> None:
    assert Penalties().neutral and not Penalties(presence=0.1).neutral
    row = torch.arange(4.0)
    Penalties().apply(row, np.array([1]), {1: 1})
    assert torch.equal(row, torch.arange(4.0))


def test_without_output_only_repetition_applies() -> None:
    row = torch.tensor([2.0, -2.0, 2.0])
    Penalties(2.0, 1.0, 1.0).apply(row, np.array([0, 1]), {})
    assert row.tolist() == [1.0, -4.0, 2.0]
