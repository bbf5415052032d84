"""Sampling: filters against a plain reference, distributions, independence of rows."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from quire.columns import pack_u32
from quire.executor.sampler import sample
from quire.executor.sequence import Sequence
from quire.internal.v1 import executor_pb2
from quire.v1 import generate_pb2


def sequence(
    vocab_size: int = 50,
    *,
    prompt: Iterable[int] = (1, 2),
    output: Iterable[int] = (),
    index: int = 0,
    eos: Iterable[int] = (),
    **params: Any,
) -> Sequence:
    fields = {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0, **params}
    return Sequence(
        executor_pb2.NewSequence(
            slot=0,
            sequence_index=index,
            prompt_token_ids=pack_u32(prompt),
            output_token_ids=pack_u32(output),
            sampling_params=generate_pb2.SamplingParams(**fields),
            eos_token_ids=pack_u32(eos),
        ),
        vocab_size,
    )


def logits_of(rows: int, vocab_size: int, scale: float = 2.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * scale


def draws(logits: torch.Tensor, count: int, **params: Any) -> NDArray[np.int64]:
    """`count` tokens from one row of logits, for as many sequence indices."""
    base = sequence(len(logits), **params)
    members = [copy.copy(base) for _ in range(count)]
    for index, member in enumerate(members):
        member.index = index
    return sample(logits.repeat(count, 1), members).token_ids


def reference(logits: torch.Tensor, params: dict[str, Any]) -> NDArray[np.float64]:
    """The distribution by transformers' warpers, in vLLM's order."""
    row = logits[None].double()
    warpers = (
        ("temperature", TemperatureLogitsWarper),
        ("min_p", MinPLogitsWarper),
        ("top_k", TopKLogitsWarper),
        ("top_p", TopPLogitsWarper),
    )
    for name, warper in warpers:
        if name in params:
            row = warper(params[name])(torch.zeros(1, 1, dtype=torch.int64), row)
    return torch.softmax(row, dim=-1)[0].numpy()


FILTERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"top_k": 1},
    {"top_k": 5},
    {"top_p": 0.8},
    {"top_p": 0.01},
    {"min_p": 0.1},
    {"top_k": 8, "top_p": 0.7},
    {"top_k": 8, "min_p": 0.2, "top_p": 0.9, "temperature": 1.5},
    {"min_p": 0.02, "top_p": 0.95},
]


@pytest.mark.parametrize("params", FILTERS, ids=str)
def test_draws_follow_the_distribution(params: dict[str, Any]) -> None:
    """Chi-squared of 4,000 draws with a fixed seed; nothing outside the support."""
    logits = logits_of(1, 40)[0]
    expected = reference(logits, params) * 4_000
    counts = np.bincount(draws(logits, 4_000, seed=11, **params), minlength=40)
    assert not counts[expected == 0].any()
    # Rare tokens together, as the test wants at least a handful in each class.
    rare = expected < 10
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    kept = wanted > 0
    statistic = ((observed[kept] - wanted[kept]) ** 2 / wanted[kept]).sum()
    freedom = max(1, kept.sum() - 1)
    # Beyond the mean by four standard deviations of the distribution.
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("vocab_size", [300, 2000])
@pytest.mark.parametrize("scale", [0.05, 1.0, 6.0])
def test_large_vocabularies_keep_the_same_tokens_as_the_reference(vocab_size: int, scale: float) -> None:
    """Flat distributions keep more tokens than the sampler first looks at, peaked ones fewer."""
    logits = logits_of(1, vocab_size, scale)[0]
    for params in (
        {"top_p": 0.9},
        {"top_k": 600 if vocab_size > 600 else 250},
        {"min_p": 0.3},
        {"min_p": 1e-4, "top_p": 0.6},
        {"top_k": 900 if vocab_size > 900 else 299, "top_p": 0.5},
    ):
        expected = reference(logits, params)
        drawn = draws(logits, 300, seed=3, **params)
        assert (expected[drawn] > 0).all()
        # As many different ones as there should be: nothing of the support is out of reach.
        distinct = (1 - (1 - expected) ** 300).sum()
        assert abs(len(np.unique(drawn)) - distinct) < 4 * np.sqrt(distinct)


def test_a_drawn_token_does_not_depend_on_how_many_candidates_were_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = logits_of(200, 1500, 3.0)
    members = [sequence(1500, seed=i, **FILTERS[3:][i % len(FILTERS[3:])]) for i in range(200)]
    expected = sample(logits.clone(), members).token_ids
    for candidates in ((10,), (1000,), ()):
        monkeypatch.setattr("quire.executor.sampler._CANDIDATES", candidates)
        assert np.array_equal(sample(logits.clone(), members).token_ids, expected)


def test_temperature_zero_takes_the_lowest_of_equal_ids() -> None:
    logits = torch.zeros(3, 1000)
    logits[1, [400, 700]] = 5.0
    logits[2, [999, 3]] = 1.0
    assert sample(logits, [sequence(1000, temperature=0.0)] * 3).token_ids.tolist() == [0, 400, 3]


def test_a_tiny_temperature_is_nearly_greedy() -> None:
    logits = logits_of(20, 50, 50.0)
    members = [sequence(50, temperature=1e-30, seed=i) for i in range(20)]
    assert np.array_equal(sample(logits.clone(), members).token_ids, logits.argmax(-1).numpy())


def test_equal_seeds_give_equal_tokens_and_other_inputs_do_not() -> None:
    logits = logits_of(1, 5000, 0.1)

    def one(**fields: Any) -> int:
        return int(sample(logits.clone(), [sequence(5000, **fields)]).token_ids[0])

    base = one(seed=5)
    assert base == one(seed=5, prompt=[7, 8, 9])
    assert len({base, one(seed=6), one(seed=5, index=1), one(seed=5, output=[1])}) == 4


def mixed_members(count: int, vocab_size: int) -> list[Sequence]:
    kinds: list[dict[str, Any]] = [
        *FILTERS,
        {"temperature": 0.0},
        {"temperature": 0.0, "presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"repetition_penalty": 1.3, "logprobs": 5},
        {"logit_bias": {3: 20.0, 4: -100.0}},
        {"min_tokens": 9, "stop_token_ids": [1, 2], "logprobs": 0},
        {"top_k": 700, "top_p": 0.9},
    ]
    return [
        sequence(vocab_size, seed=i, output=range(i % 7), eos=[5], index=i % 3, **kinds[i % len(kinds)])
        for i in range(count)
    ]


@pytest.mark.parametrize("vocab_size", [50, 1003])
def test_a_rows_result_does_not_depend_on_the_others(vocab_size: int) -> None:
    members = mixed_members(64, vocab_size)
    logits = logits_of(64, vocab_size)
    together = sample(logits.clone(), members)
    reports = {report.row: report for report in together.logprobs}
    for row, member in enumerate(members):
        alone = sample(logits[row : row + 1].clone(), [member])
        assert alone.token_ids[0] == together.token_ids[row]
        if row in reports:
            assert alone.logprobs[0].logprob == reports[row].logprob
            assert alone.logprobs[0].top_logprobs == reports[row].top_logprobs
    order = np.random.default_rng(0).permutation(64)
    shuffled = sample(logits[order].clone(), [members[i] for i in order])
    assert np.array_equal(shuffled.token_ids, together.token_ids[order])


def test_logprobs_are_those_of_the_untouched_logits() -> None:
    logits = logits_of(2, 50)
    expected = torch.log_softmax(logits, dim=-1)
    member = sequence(50, temperature=0.3, seed=1, logprobs=4, logit_bias={7: 100.0}, output=[1], presence_penalty=1.5)
    samples = sample(logits.clone(), [sequence(50, temperature=0.0), member])
    assert samples.token_ids[1] == 7
    (report,) = samples.logprobs
    assert report.row == 1
    assert report.logprob == pytest.approx(expected[1, 7].item())
    top = expected[1].topk(4)
    assert report.top_token_ids == top.indices.tolist()
    assert report.top_logprobs == pytest.approx(top.values.tolist())


def test_zero_logprobs_report_the_sampled_token_alone() -> None:
    (report,) = sample(logits_of(1, 50), [sequence(50, logprobs=0)]).logprobs
    assert (report.top_token_ids, report.top_logprobs) == ([], [])
    assert report.logprob < 0


def test_min_tokens_masks_end_and_stop_tokens_until_it_is_reached() -> None:
    logits = torch.zeros(1, 10)
    logits[0, [3, 4]] = torch.tensor([9.0, 8.0])
    fields: dict[str, Any] = {"temperature": 0.0, "min_tokens": 2, "eos": [3], "stop_token_ids": [4]}
    for output, expected in (([], 0), ([1], 0), ([1, 1], 3)):
        assert sample(logits.clone(), [sequence(10, output=output, **fields)]).token_ids[0] == expected


def test_logit_bias_comes_before_everything_else() -> None:
    """A penalty multiplies a biased logit; ids outside the vocabulary are ignored."""
    logits = torch.tensor([[1.0, 2.0, 0.0]])
    member = sequence(
        3, temperature=0.0, prompt=[0], repetition_penalty=2.0, logit_bias={0: 2.5, 99: 1.0}, stop_token_ids=[77]
    )
    # (1 + 2.5) / 2 = 1.75 < 2
    assert sample(logits, [member]).token_ids[0] == 1


def test_logits_that_are_no_numbers_do_not_lead_outside_the_vocabulary() -> None:
    logits = torch.full((3, 20), torch.nan)
    members = [sequence(20), sequence(20, top_p=0.5), sequence(20, temperature=0.0)]
    assert all(0 <= token < 20 for token in sample(logits, members).token_ids)
