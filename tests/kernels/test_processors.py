"""Every edit of the logits against transformers' processors: alone exactly, all together by the draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.sampling import assert_drawn_from, make_batch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from quire import kernels

VOCAB = 40
PROMPT = [3, 4, 4, 9]
ALLOWED = [1, 3, 4, 9, 20, 22, 30, 31, 39]


class _OutputPenalties(LogitsProcessor):
    """Frequency and presence, by OpenAI's definition; transformers has none."""

    def __init__(self, frequency: float, presence: float) -> None:
        self._frequency, self._presence = frequency, presence

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        counts = torch.bincount(input_ids[0, len(PROMPT) :], minlength=VOCAB)
        return scores - self._frequency * counts - self._presence * (counts > 0)


# Name, our fields, transformers' processor.
EDITS: list[tuple[str, dict[str, Any], LogitsProcessor]] = [
    (
        "logit_bias",
        {"bias": {3: 2.5, 17: -100.0, 39: 1.25}},
        SequenceBiasLogitsProcessor([[[3], 2.5], [[17], -100.0], [[39], 1.25]]),
    ),
    (
        "min_tokens",
        {"min_tokens": 3, "banned": [5, 20]},
        MinNewTokensLengthLogitsProcessor(len(PROMPT), 3, [5, 20]),
    ),
    ("allowed", {"allowed": ALLOWED}, PrefixConstrainedLogitsProcessor(lambda batch, ids: ALLOWED, num_beams=1)),
    ("repetition", {"repetition_penalty": 1.7}, RepetitionPenaltyLogitsProcessor(1.7)),
    ("output", {"frequency_penalty": 0.5, "presence_penalty": -0.75}, _OutputPenalties(0.5, -0.75)),
]
FILTERS: dict[str, Any] = {"temperature": 1.4, "min_p": 0.02, "top_k": 7, "top_p": 0.9}
WARPERS = [TemperatureLogitsWarper(1.4), MinPLogitsWarper(0.02), TopKLogitsWarper(7), TopPLogitsWarper(0.9)]


def _logits() -> Tensor:
    return torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(5)) * 2


@pytest.mark.parametrize("output", [[], [9], [20, 20, 3], [1, 2, 3, 4, 5, 20]])
@pytest.mark.parametrize(("name", "fields", "processor"), EDITS, ids=[name for name, _, _ in EDITS])
def test_each_equals_transformers(
    implementation: str, name: str, fields: dict[str, Any], processor: LogitsProcessor, output: list[int]
) -> None:
    """The sampler leaves the edited logits where they were given."""
    edited = _logits()
    kernels.sample(edited, make_batch([{"prompt": PROMPT, "output": output, "temperature": 0.0, **fields}], VOCAB))
    expected = processor(torch.tensor([PROMPT + output]), _logits())
    torch.testing.assert_close(edited, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("output", [[], [20, 20, 3]])
@pytest.mark.parametrize("seed", [1, 2])
def test_all_of_them_and_every_filter(implementation: str, output: list[int], seed: int) -> None:
    fields = {name: value for _, edit, _ in EDITS for name, value in edit.items()}
    plan = {"prompt": PROMPT, "output": output, "seed": seed, **fields, **FILTERS}
    count = 4_000
    batch = make_batch([plan | {"sequence_index": index} for index in range(count)], VOCAB)
    drawn = kernels.sample(_logits().repeat(count, 1), batch).token_ids
    processors = LogitsProcessorList([*(processor for _, _, processor in EDITS), *WARPERS])
    expected = processors(torch.tensor([PROMPT + output]), _logits().double())
    assert_drawn_from(drawn, torch.softmax(expected, dim=-1)[0].numpy())
