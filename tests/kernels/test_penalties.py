"""Penalties against transformers' processor and the definition, in torch; then native against torch."""

from __future__ import annotations

from typing import Any

import torch
from support.sampling import make_batch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from quire import kernels
from quire.kernels.torch_sampling import apply_penalties


def penalised(logits: Tensor, *plans: dict[str, Any]) -> Tensor:
    result = logits.clone()
    apply_penalties(result, make_batch(plans, logits.shape[1]))
    return result


def test_repetition_equals_transformers() -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)) * 3
    prompt, output = [3, 4, 4, 9], [9, 20, 20, 3]
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt + output]), logits.clone())
    result = penalised(logits, {"prompt": prompt, "output": output, "repetition_penalty": 1.7})
    torch.testing.assert_close(result, expected)


def test_frequency_and_presence_count_the_output_alone() -> None:
    plan = {"prompt": [1, 2], "output": [2, 7, 2, 2], "frequency_penalty": 0.5, "presence_penalty": 0.25}
    expected = torch.zeros(3, 10)
    expected[1, 2], expected[1, 7] = -(3 * 0.5 + 0.25), -(0.5 + 0.25)
    assert torch.equal(penalised(torch.zeros(3, 10), {}, plan, {}), expected)


def test_each_row_has_its_own() -> None:
    both = {"repetition_penalty": 2.0, "frequency_penalty": 1.0, "presence_penalty": 1.0}
    result = penalised(
        torch.tensor([[2.0, -2.0, 2.0]]).repeat(3, 1),
        {"prompt": [1], "output": [2], "presence_penalty": 0.5},
        {},
        {"prompt": [0, 1], "output": []} | both,
    )
    assert result.tolist() == [[2.0, -2.0, 1.5], [2.0, -2.0, 2.0], [1.0, -4.0, 2.0]]


def test_native_penalties_equal_torchs_bit_for_bit(isa: str) -> None:
    """Penalised logits are left where they were given; ids beyond the vocabulary are passed over."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(60, 500, generator=generator) * 5
    plans = []
    for row in range(60):
        tokens = torch.randint(0, 520, (row * 7 + 1,), generator=generator).tolist()
        fields = {"repetition_penalty": 1.0 + row % 3 / 7, "frequency_penalty": row % 4 / 9, "presence_penalty": 0.3}
        plans.append({"temperature": 0.0, "prompt": tokens[: row * 2], "output": tokens[row * 2 :]} | fields)
    edited = logits.clone()
    kernels.sample(edited, make_batch(plans, 500))
    assert torch.equal(edited, penalised(logits, *plans))
    assert not torch.equal(edited, logits)
