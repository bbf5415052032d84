"""Sampling against the implementations for CPUs: the same uniform numbers, filters, edits, and so the same tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.sampling import assert_drawn_from, make_batch
from torch import Tensor

from quire import kernels
from quire.kernels import DeviceSampledTokens, SampledTokens, native_sampling, torch_sampling

Plan = dict[str, Any]
GREEDY: Plan = {"temperature": 0.0}


def sample(logits: Tensor, *plans: Plan) -> SampledTokens:
    """Leaves the logits as they are."""
    return kernels.sample(logits.clone(), make_batch(plans, logits.shape[1]))


def logits_of(rows: int, vocab_size: int, device: torch.device, scale: float = 2.0) -> Tensor:
    return (torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(rows)) * scale).to(device)


def plans_of(count: int, vocab_size: int) -> list[Plan]:
    """All that a row can want, in turn."""
    last, half = vocab_size - 1, max(1, vocab_size // 2)
    kinds: list[Plan] = [
        GREEDY,
        {},
        {"temperature": 0.3},
        {"top_k": half},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"top_k": half, "top_p": 0.9, "temperature": 1.5},
        {"top_k": 3, "min_p": 0.05, "top_p": 0.5},
        {"min_p": 1e-6, "top_p": 0.99},
        GREEDY | {"bias": {0: 9.0, last: 9.5}, "num_logprobs": min(3, vocab_size)},
        {"min_tokens": 9, "banned": range(half), "num_logprobs": 0},
        {"allowed": range(0, vocab_size, 3), "top_p": 0.5},
        GREEDY | {"presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"repetition_penalty": 1.3, "frequency_penalty": -0.2, "top_k": 5, "num_logprobs": min(5, vocab_size)},
    ]
    # Half of the seeds have more than 32 bits.
    return [
        {"seed": i * (1 + i % 2 * 2**40), "sequence_index": i % 3, "output": [i % 5, 2, 2][: i % 4]} | kind
        for i, kind in enumerate(kinds[i % len(kinds)] for i in range(count))
    ]


@pytest.mark.parametrize("scale", [0.02, 1.0, 8.0])
@pytest.mark.parametrize("vocab_size", [1, 7, 100, 1000, 5003])
def test_tokens_are_those_of_the_cpu(device, vocab_size, scale):
    """Unless weights that round otherwise move a cut, or the end of a token's share past the uniform number."""
    count = 14 if device.type == "cpu" else 2000
    plans, logits = plans_of(count, vocab_size), logits_of(count, vocab_size, device, scale)
    if scale == 8.0:
        logits = logits.round()  # many ties
    batch = make_batch(plans, vocab_size)
    sampled = kernels.sample(logits.clone(), batch)
    for other in (native_sampling, torch_sampling):
        expected = other.sample(logits.cpu().clone(), batch)
        different = np.flatnonzero(sampled.token_ids != expected.token_ids)
        assert len(different) <= count // 200
        assert np.array_equal(sampled.impossible, expected.impossible)
        assert not any(plans[row].get("temperature") == 0 for row in different)
    compare_logprobs(sampled, logits.cpu(), plans)


def compare_logprobs(sampled: SampledTokens, logits: Tensor, plans: list[Plan]) -> None:
    assert sampled.logprobs is not None and sampled.top_token_ids is not None and sampled.top_logprobs is not None
    for row, plan in enumerate(plans):
        if (wanted := plan.get("num_logprobs", -1)) < 0:
            continue
        exact = torch.log_softmax(logits[row].double(), dim=-1).numpy()
        assert sampled.logprobs[row] == pytest.approx(exact[sampled.token_ids[row]], abs=3e-6)
        ids = sampled.top_token_ids[row, :wanted]
        # Equal logits in the order of their ids.
        assert ids.tolist() == logits[row].argsort(descending=True, stable=True)[:wanted].tolist()
        assert sampled.top_logprobs[row, :wanted] == pytest.approx(exact[ids], rel=3e-7, abs=3e-6)


def draws(logits: Tensor, count: int, **plan: Any) -> NDArray[np.int32]:
    """`count` tokens from one row of logits, for as many sequence indices."""
    plans = [plan | {"sequence_index": i} for i in range(count)]
    return sample(logits.repeat(count, 1), *plans).token_ids


@pytest.mark.parametrize("plan", [{"temperature": 1.3}, {"top_k": 6, "top_p": 0.9}], ids=str)
def test_draws_follow_the_distribution(device, plan):
    logits = logits_of(1, 12, device)[0]
    shares = torch.softmax(logits.double().cpu() / plan.get("temperature", 1.0), dim=-1).numpy()
    if "top_k" in plan:
        shares[shares < np.sort(shares)[-6]] = 0
        order = np.argsort(-shares)
        kept = np.searchsorted(shares[order].cumsum(), 0.9 * shares.sum()) + 1
        shares[order[kept:]] = 0
    drawn = draws(logits, 100 if device.type == "cpu" else 20_000, seed=2**35 + 1, **plan)
    assert_drawn_from(drawn, shares / shares.sum())


def test_a_cut_that_leaves_many_tokens_is_found_in_the_whole_row(device, monkeypatch):
    """The slower way is taken where candidates have no room; both find the same."""
    plans = [plan | {"seed": i} for i, plan in enumerate(plans_of(9, 300)[3:])]
    logits = logits_of(len(plans), 300, device, 0.5)
    monkeypatch.setattr("quire.kernels.triton.sampling._CHUNK", 128)
    few = sample(logits, *plans)
    monkeypatch.setattr("quire.kernels.triton.sampling._CANDIDATES", 2)
    assert np.array_equal(sample(logits, *plans).token_ids, few.token_ids)


def test_a_rows_result_does_not_depend_on_the_others(device):
    """Bit for bit, alone and among others that want other things."""
    plans, logits = plans_of(14, 500), logits_of(14, 500, device)
    together = sample(logits, *plans)
    assert together.logprobs is not None and together.top_logprobs is not None
    for row, plan in enumerate(plans):
        alone = sample(logits[row : row + 1], plan)
        assert alone.token_ids[0] == together.token_ids[row]
        if (wanted := plan.get("num_logprobs", -1)) >= 0:
            assert alone.logprobs is not None and alone.top_logprobs is not None
            assert alone.logprobs[0] == together.logprobs[row]
            assert np.array_equal(alone.top_logprobs[0, :wanted], together.top_logprobs[row, :wanted])


def test_equal_tokens_stay_or_go_together(device):
    logits = torch.full((600,), -1.0, device=device)
    logits[100:300] = 1.0
    logits[[7, 400]] = 2.0
    for plan in ({"top_k": 3}, {"top_p": 0.1}, {"min_p": 0.36}):
        drawn = draws(logits, 20, seed=1, **plan)
        assert set(logits[drawn.astype(np.int64)].tolist()) <= {1.0, 2.0}
        assert len(np.unique(drawn)) > 10
    assert set(draws(logits, 10, seed=1, top_k=2).tolist()) == {7, 400}
    assert set(draws(logits, 10, seed=1, top_p=1e-6).tolist()) == {7, 400}


def test_greedy_takes_the_lowest_of_equal_ids(device):
    logits = logits_of(4, 5000, device).round()
    logits[1] = 0.0
    logits[2] = -torch.inf
    logits[2, 4500:] = -3.0
    logits[3, -1] = 100.0
    expected = logits.cpu().argmax(dim=-1).tolist()
    assert sample(logits, *[GREEDY] * 4).token_ids.tolist() == expected
    assert expected[1:] == [0, 4500, 4999]


def test_logits_that_are_no_numbers(device):
    """Nan counts as -inf; where nothing is left, token 0 and a flag; +inf is certain."""
    logits = torch.full((8, 200), torch.nan, device=device)
    logits[3] = -torch.inf
    logits[4:, 150] = 1.0
    logits[6, 170] = torch.inf
    plans: list[Plan] = [{}, {"top_p": 0.5}, GREEDY, {"top_k": 3}, {}, {"top_p": 0.5}, {"min_p": 0.1}, GREEDY]
    sampled = sample(logits, *(plan | {"num_logprobs": 5} for plan in plans))
    assert sampled.token_ids.tolist() == [0, 0, 0, 0, 150, 150, 170, 150]
    assert sampled.impossible.tolist() == [True] * 4 + [False] * 4
    assert sampled.logprobs is not None and sampled.top_logprobs is not None and sampled.top_token_ids is not None
    assert sampled.logprobs.tolist() == [-np.inf] * 4 + [0.0, 0.0, -np.inf, 0.0]
    assert sampled.top_logprobs[4].tolist() == [0.0, *[-np.inf] * 4]
    assert sampled.top_token_ids[4].tolist() == [150, 0, 1, 2, 3]


@pytest.mark.parametrize("plan", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-30}], ids=str)
def test_the_narrowest_filters_are_greedy(device, plan):
    logits = logits_of(4, 3000, device, 50.0)
    plans = [plan | {"seed": i} for i in range(4)]
    assert np.array_equal(sample(logits, *plans).token_ids, logits.cpu().argmax(-1).numpy())


def test_masks_may_leave_one_token_or_none(device):
    logits = logits_of(4, 97, device)
    plans: list[Plan] = [{"allowed": [96]}, GREEDY | {"allowed": [31]}, {"allowed": []}, {"top_k": 3, "allowed": [32]}]
    sampled = sample(logits, *plans)
    assert sampled.token_ids.tolist() == [96, 31, 0, 32]
    assert sampled.impossible.tolist() == [False, False, True, False]


def test_a_banned_token_is_banned_whatever_its_bias(device):
    plan = {"bias": {1: 50.0, 2: 40.0}, "min_tokens": 2, "banned": [1]}
    plans = [GREEDY | plan | {"output": [5] * length} for length in range(3)]
    assert sample(logits_of(3, 10, device), *plans).token_ids.tolist() == [2, 2, 1]


def test_penalties_equal_torchs_bit_for_bit(device):
    """Ids beyond the vocabulary are passed over; the edited logits stay where they were given."""
    generator = torch.Generator().manual_seed(1)
    logits = logits_of(8, 500, device, 5.0)
    plans = []
    for row in range(8):
        tokens = torch.randint(0, 520, (row * 300 + 1,), generator=generator).tolist()
        fields = {"repetition_penalty": 1.0 + row % 3 / 7, "frequency_penalty": row % 4 / 9, "presence_penalty": 0.3}
        plans.append(GREEDY | {"prompt": tokens[: row * 20], "output": tokens[row * 20 :]} | fields)
    edited, expected, batch = logits.clone(), logits.cpu().clone(), make_batch(plans, 500)
    kernels.sample(edited, batch)
    torch_sampling.apply_penalties(expected, batch)
    assert torch.equal(edited.cpu(), expected)


def test_rows_of_a_larger_tensor_are_sampled_where_they_lie(device):
    logits = logits_of(3, 300, device)[:, 100:229]
    batch = make_batch([GREEDY, GREEDY | {"num_logprobs": 1}, {"top_k": 1}], 129)
    assert kernels.sample(logits, batch).token_ids.tolist() == logits.cpu().argmax(dim=-1).tolist()


def test_no_rows(device):
    assert sample(torch.zeros(0, 9, device=device)).token_ids.shape == (0,)


def test_nothing_waits_for_the_device(device):
    """Torch raises at any operation of its own that would; the result comes by an asynchronous copy and an event."""
    if device.type == "cpu":
        pytest.skip("there is no CUDA device")
    plans, logits = plans_of(56, 5003), logits_of(56, 5003, device)
    expected = sample(logits, *plans)
    batch = make_batch(plans, 5003)
    pinned: list[Tensor] = []

    def stage(words: NDArray[np.int32]) -> Tensor:
        pinned.append(torch.from_numpy(words).pin_memory())
        return pinned[-1].to(device, non_blocking=True)

    host = torch.empty(DeviceSampledTokens.num_words(56, 5), dtype=torch.int32).pin_memory()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sampled = kernels.sample_on_device(logits, batch, stage)
        sampled.fetch_into(host)
        done = torch.cuda.Event()
        done.record()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    done.synchronize()
    assert len(pinned) == 1
    assert np.array_equal(sampled.unpack(host.numpy()).token_ids, expected.token_ids)
