"""Sampling: filters against a plain reference, distributions, edits, independence of rows; torch and native."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.sampling import assert_drawn_from, make_batch
from torch import Tensor
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from quire import kernels
from quire.kernels import SampledTokens, native_sampling, torch_sampling
from quire.kernels.philox import uniform

Plan = dict[str, Any]
GREEDY: Plan = {"temperature": 0.0}


def sample(logits: Tensor, *plans: Plan) -> SampledTokens:
    """Leaves the logits as they are."""
    return kernels.sample(logits.clone(), make_batch(plans, logits.shape[1]))


def one(logits: Tensor, **plan: Any) -> int:
    return int(sample(logits[None], plan).token_ids[0])


def logits_of(rows: int, vocab_size: int, scale: float = 2.0, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * scale


def draws(logits: Tensor, count: int, **plan: Any) -> NDArray[np.int32]:
    """`count` tokens from one row of logits, for as many sequence indices."""
    batch = make_batch([plan], len(logits))
    rows = np.repeat(batch.rows, count)
    rows["sequence_index"] = np.arange(count)
    every = dataclasses.replace(batch, rows=rows, bias_starts=None, banned_starts=None)
    return kernels.sample(logits.repeat(count, 1), every).token_ids


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
    {"temperature": 0.7, "top_p": 0.6},
    {"temperature": 1.3, "min_p": 0.15},
    {"temperature": 0.9, "top_k": 3},
]


@pytest.mark.parametrize("params", FILTERS, ids=str)
def test_draws_follow_the_distribution(implementation: str, params: Plan) -> None:
    """Chi-squared of 4,000 draws with a fixed seed; nothing outside the support."""
    logits = logits_of(1, 40)[0]
    assert_drawn_from(draws(logits, 4_000, seed=11, **params), reference(logits, params))


@pytest.mark.parametrize("vocab_size", [300, 2000])
@pytest.mark.parametrize("scale", [0.05, 1.0, 6.0])
def test_large_vocabularies_keep_the_same_tokens_as_the_reference(
    implementation: str, vocab_size: int, scale: float
) -> None:
    """Flat distributions keep more tokens than the sampler first looks at, peaked ones fewer."""
    logits = logits_of(1, vocab_size, scale)[0]
    plans: list[Plan] = [
        {"top_p": 0.9},
        {"top_k": 600 if vocab_size > 600 else 250},
        {"min_p": 0.3},
        {"min_p": 1e-4, "top_p": 0.6},
        {"top_k": 900 if vocab_size > 900 else 299, "top_p": 0.5},
    ]
    for params in plans:
        expected = reference(logits, params)
        drawn = draws(logits, 300, seed=3, **params)
        assert (expected[drawn] > 0).all()
        # As many different ones as there should be: nothing of the support is out of reach.
        distinct = (1 - (1 - expected) ** 300).sum()
        assert abs(len(np.unique(drawn)) - distinct) < 4 * np.sqrt(distinct)


def mixed_plans(count: int, vocab_size: int) -> list[Plan]:
    """Everything there is, in turn."""
    kinds: list[Plan] = [
        *FILTERS,
        GREEDY,
        GREEDY | {"presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"repetition_penalty": 1.3, "num_logprobs": min(5, vocab_size)},
        {"bias": {3: 20.0, 4: -100.0}},
        {"min_tokens": 9, "banned": [1, 2, 5], "num_logprobs": 0},
        {"top_k": 700, "top_p": 0.9, "num_logprobs": min(150, vocab_size)},
        {"allowed": range(0, vocab_size, 3), "top_p": 0.5},
    ]
    return [{"seed": i, "sequence_index": i % 3, "output": range(i % 7)} | kinds[i % len(kinds)] for i in range(count)]


@pytest.mark.parametrize("vocab_size", [50, 1003])
def test_a_rows_result_does_not_depend_on_the_others(implementation: str, vocab_size: int) -> None:
    plans = mixed_plans(64, vocab_size)
    logits = logits_of(64, vocab_size)
    together = sample(logits, *plans)
    order = np.random.default_rng(0).permutation(64)
    shuffled = sample(logits[order], *(plans[i] for i in order))
    for row, plan in enumerate(plans):
        at = int(np.flatnonzero(order == row)[0])
        alone = sample(logits[row : row + 1], plan)
        assert alone.token_ids[0] == together.token_ids[row] == shuffled.token_ids[at]
        if (count := plan.get("num_logprobs", -1)) >= 0:
            results = ((alone, 0), (together, row), (shuffled, at))
            assert len({report(*result, count) for result in results}) == 1


def report(sampled: SampledTokens, row: int, count: int) -> tuple[bytes, bytes, bytes]:
    """The bits of a row's logprobs."""
    assert sampled.logprobs is not None and sampled.top_token_ids is not None and sampled.top_logprobs is not None
    return (
        sampled.logprobs[row].tobytes(),
        sampled.top_token_ids[row, :count].tobytes(),
        sampled.top_logprobs[row, :count].tobytes(),
    )


def test_any_number_of_threads_gives_the_same(isa: str) -> None:
    """Enough work that rows are spread."""
    plans, logits = mixed_plans(40, 20_000), logits_of(40, 20_000)
    results = []
    for threads in (1, 2, 3):
        kernels.set_num_threads(threads)
        results.append(sample(logits, *plans))
    assert all(np.array_equal(results[0].token_ids, other.token_ids) for other in results)
    assert results[0].top_logprobs is not None and results[2].top_logprobs is not None
    assert np.array_equal(results[0].top_logprobs, results[2].top_logprobs)


@pytest.mark.parametrize("vocab_size", [1, 7, 97, 128, 129, 49152, 151936])
def test_native_samples_what_torch_samples(isa: str, vocab_size: int) -> None:
    """The same tokens, unless the uniform number falls within 1e-6 of where one token ends and the next begins."""
    count = 19 * (8 if vocab_size < 1000 else 1)
    close = 0
    for scale in (0.02, 1.0, 8.0):
        plans = mixed_plans(count, vocab_size) if vocab_size > 7 else [{"seed": i} for i in range(count)]
        logits = logits_of(count, vocab_size, scale)
        batch = make_batch(plans, vocab_size)
        native = native_sampling.sample(logits.clone(), batch)
        expected = torch_sampling.sample(logits.clone(), batch)
        for row in np.flatnonzero(native.token_ids != expected.token_ids):
            assert plans[row].get("temperature", 1.0) > 0
            assert distance(logits[row], plans[row], int(native.token_ids[row])) < 1e-6
            close += 1
        compare_logprobs(native, expected, plans, logits)
    # Of several hundred draws, each with a chance of some 1e-6 times the tokens around it.
    assert close <= 2


def distance(logits: Tensor, plan: Plan, token: int) -> float:
    """How far the draw's uniform number lies from the token's share of the distribution."""
    edited = logits[None].clone()
    torch_sampling._edit(edited, make_batch([plan], len(logits)))
    shares = reference(edited[0], plan)
    end = shares.cumsum()[token]
    number = uniform([plan["seed"]], [len(plan.get("output", ()))], [plan.get("sequence_index", 0)])[0]
    assert shares[token] > 0
    return float(max(end - shares[token] - number, number - end, 0.0))


def compare_logprobs(native: SampledTokens, expected: SampledTokens, plans: list[Plan], logits: Tensor) -> None:
    for row, plan in enumerate(plans):
        if (wanted := plan.get("num_logprobs", -1)) < 0:
            continue
        assert native.logprobs is not None and native.top_token_ids is not None and native.top_logprobs is not None
        assert expected.top_logprobs is not None
        exact = torch.log_softmax(logits[row].double(), dim=-1).numpy()
        assert native.logprobs[row] == pytest.approx(exact[native.token_ids[row]], abs=2e-6)
        ids = native.top_token_ids[row, :wanted]
        # Equal logits in the order of their ids.
        assert ids.tolist() == logits[row].argsort(descending=True, stable=True)[:wanted].tolist()
        assert native.top_logprobs[row, :wanted] == pytest.approx(exact[ids], rel=2e-7, abs=2e-6)
        assert native.top_logprobs[row, :wanted] == pytest.approx(expected.top_logprobs[row, :wanted], abs=1e-5)


@pytest.mark.parametrize("vocab_size", [1, 7, 97, 49152, 151936])
def test_greedy_takes_the_lowest_of_equal_ids(implementation: str, vocab_size: int) -> None:
    logits = logits_of(4, vocab_size).round()  # many ties
    logits[1] = 0.0
    logits[2] = -torch.inf
    logits[2, vocab_size // 2 :] = -3.0
    logits[3, -1] = 100.0
    expected = logits.argmax(dim=-1)
    assert expected.tolist()[1:] == [0, vocab_size // 2, vocab_size - 1]
    assert sample(logits, *[GREEDY] * 4).token_ids.tolist() == expected.tolist()


def test_equal_tokens_stay_or_go_together(implementation: str) -> None:
    """As many equal ones as are never sorted at once, a few likelier ones above, others below."""
    logits = torch.full((5000,), -1.0)
    logits[1000:3000] = 1.0
    logits[[7, 4000]] = 2.0
    for plan in ({"top_k": 3}, {"top_k": 2002}, {"top_p": 0.1}, {"top_p": 0.7}, {"min_p": 0.36}):
        drawn = draws(logits, 400, seed=1, **plan)
        kinds = logits[drawn.astype(np.int64)]
        assert set(kinds.tolist()) == {1.0} | ({2.0} if 2.0 in kinds else set())
        assert len(np.unique(drawn)) > 300
    assert set(draws(logits, 200, seed=1, top_k=2).tolist()) == {7, 4000}
    assert set(draws(logits, 200, seed=1, top_k=1).tolist()) == {7, 4000}
    assert set(draws(logits, 200, seed=1, top_p=1e-6).tolist()) == {7, 4000}


@pytest.mark.parametrize("plan", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-30}], ids=str)
def test_the_narrowest_filters_are_greedy(implementation: str, plan: Plan) -> None:
    logits = logits_of(20, 3000, 50.0)
    plans = [plan | {"seed": i} for i in range(20)]
    assert np.array_equal(sample(logits, *plans).token_ids, logits.argmax(-1).numpy())


def test_equal_seeds_give_equal_tokens_and_other_inputs_do_not(implementation: str) -> None:
    logits = logits_of(1, 5000, 0.1)[0]
    base = one(logits, seed=5)
    assert base == one(logits, seed=5, prompt=[7, 8, 9])
    others = [one(logits, seed=6), one(logits, seed=5, sequence_index=1), one(logits, seed=5, output=[1])]
    assert len({base, one(logits, seed=5 + 2**32), *others}) == 5


def test_a_drawn_token_does_not_depend_on_how_many_candidates_torch_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.set_implementation("torch")
    logits = logits_of(200, 1500, 3.0)
    plans = [FILTERS[3:][i % len(FILTERS[3:])] | {"seed": i} for i in range(200)]
    expected = sample(logits, *plans).token_ids
    for candidates in ((10,), (1000,), ()):
        monkeypatch.setattr("quire.kernels.torch_sampling._CANDIDATES", candidates)
        assert np.array_equal(sample(logits, *plans).token_ids, expected)


def test_logprobs_are_those_of_the_untouched_logits(implementation: str) -> None:
    logits = logits_of(2, 50)
    expected = torch.log_softmax(logits, dim=-1)
    plan = {"temperature": 0.3, "num_logprobs": 4, "bias": {7: 100.0}, "output": [1], "presence_penalty": 1.5}
    sampled = sample(logits, GREEDY, plan)
    assert sampled.token_ids[1] == 7
    assert sampled.logprobs is not None and sampled.top_token_ids is not None and sampled.top_logprobs is not None
    assert sampled.logprobs[1] == pytest.approx(expected[1, 7].item())
    top = expected[1].topk(4)
    assert sampled.top_token_ids[1].tolist() == top.indices.tolist()
    assert sampled.top_logprobs[1].tolist() == pytest.approx(top.values.tolist())


def test_without_logprobs_there_are_none(implementation: str) -> None:
    assert sample(logits_of(2, 50), {}, GREEDY).logprobs is None
    sampled = sample(logits_of(1, 50), {"num_logprobs": 0})
    assert sampled.logprobs is not None and sampled.top_token_ids is not None
    assert sampled.logprobs[0] < 0 and sampled.top_token_ids.shape == (1, 0)


def test_banned_tokens_are_not_sampled_below_min_tokens(implementation: str) -> None:
    logits = torch.zeros(10)
    logits[[3, 4]] = torch.tensor([9.0, 8.0])
    plan = GREEDY | {"min_tokens": 2, "banned": [3, 4]}
    for output, expected in (([], 0), ([1], 0), ([1, 1], 3)):
        assert one(logits, output=output, **plan) == expected


def test_logit_bias_comes_before_everything_else(implementation: str) -> None:
    """A penalty multiplies a biased logit: (1 + 2.5) / 2 = 1.75 < 2."""
    assert one(torch.tensor([1.0, 2.0, 0.0]), **GREEDY, prompt=[0], repetition_penalty=2.0, bias={0: 2.5}) == 1


@pytest.mark.parametrize("vocab_size", [7, 64, 1000])
def test_masked_tokens_are_not_sampled(implementation: str, vocab_size: int) -> None:
    allowed = [2, vocab_size - 1]
    logits = logits_of(1, vocab_size)[0]
    assert set(draws(logits, 200, allowed=allowed, temperature=9.0)) == set(allowed)
    assert one(logits, allowed=allowed, **GREEDY) == allowed[int(logits[allowed].argmax())]
    # A neighbour's mask is its own.
    other = sample(logits.repeat(2, 1), GREEDY, GREEDY | {"allowed": [5]})
    assert other.token_ids.tolist() == [int(logits.argmax()), 5]


def test_logits_that_are_no_numbers(implementation: str) -> None:
    """Nan counts as -inf; where nothing is left, token 0 and a flag."""
    logits = torch.full((8, 200), torch.nan)
    logits[3] = -torch.inf
    logits[4:, 150] = 1.0
    logits[6, 170] = torch.inf
    plans: list[Plan] = [{}, {"top_p": 0.5}, GREEDY, {"top_k": 3}, {}, {"top_p": 0.5}, {"min_p": 0.1}, GREEDY]
    sampled = sample(logits, *plans)
    assert sampled.token_ids.tolist() == [0, 0, 0, 0, 150, 150, 170, 150]
    assert sampled.impossible.tolist() == [True] * 4 + [False] * 4
    logits = torch.zeros(1, 9)
    sampled = sample(logits, {"min_tokens": 1, "banned": range(9), "num_logprobs": 2})
    assert sampled.impossible.all() and sampled.logprobs is not None
    assert sampled.logprobs[0] == pytest.approx(-np.log(9))


def test_logprobs_of_logits_that_are_no_numbers(implementation: str) -> None:
    logits = torch.full((1, 300), torch.nan)
    logits[0, 299] = 2.0
    sampled = sample(logits, {"num_logprobs": 5})
    assert sampled.token_ids[0] == 299 and sampled.logprobs is not None and sampled.top_logprobs is not None
    assert sampled.logprobs[0] == 0
    assert sampled.top_logprobs[0].tolist() == [0.0, *[-np.inf] * 4]
    nothing = sample(torch.full((1, 300), torch.nan), {"num_logprobs": 1})
    assert nothing.top_logprobs is not None and nothing.top_logprobs[0, 0] == -np.inf


def test_no_rows(implementation: str) -> None:
    assert sample(torch.zeros(0, 9)).token_ids.shape == (0,)


def test_rows_of_a_larger_tensor_are_sampled_where_they_lie(isa: str) -> None:
    wide = logits_of(3, 300)
    logits = wide[:, 100:229]
    batch = make_batch([GREEDY | {"num_logprobs": 1}] * 3, 129)
    assert kernels.sample(logits, batch).token_ids.tolist() == logits.argmax(dim=-1).tolist()


def test_arrays_that_may_not_be_written_are_read(isa: str) -> None:
    batch = make_batch([GREEDY | {"allowed": [4], "bias": {4: 1.0}}], 9)
    for array in (batch.rows, batch.token_ids, batch.allowed_masks, batch.bias_ids, batch.bias_values):
        assert array is not None
        array.flags.writeable = False
    assert kernels.sample(torch.zeros(1, 9), batch).token_ids.tolist() == [4]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"token_row": 5}, r"rows\[0\] names tokens"),
        ({"num_tokens": 99}, r"rows\[0\] names tokens"),
        ({"num_prompt_tokens": 9}, r"rows\[0\] names tokens"),
        ({"mask_row": 0}, "outside allowed_masks"),
    ],
)
def test_rows_that_name_what_is_not_there(damage: Plan, message: str) -> None:
    batch = make_batch([GREEDY], 9)
    for name, value in damage.items():
        batch.rows[name] = value
    with pytest.raises(ValueError, match=message):
        kernels.sample(torch.zeros(1, 9), batch)


def test_wrong_arguments() -> None:
    batch = make_batch([GREEDY], 9)
    for logits in (torch.zeros(1, 9, dtype=torch.float64), torch.zeros(9), torch.zeros(1, 18)[:, ::2]):
        with pytest.raises(ValueError, match=r"^logits"):
            kernels.sample(logits, batch)
    with pytest.raises(ValueError, match=r"^rows"):
        kernels.sample(torch.zeros(2, 9), batch)
    with pytest.raises(ValueError, match=r"^token_ids"):
        kernels.sample(torch.zeros(1, 9), dataclasses.replace(batch, token_ids=np.zeros((1, 9), np.int64)))
    with pytest.raises(ValueError, match=r"^allowed_masks"):
        kernels.sample(torch.zeros(1, 99), dataclasses.replace(batch, allowed_masks=np.zeros((1, 1), np.uint32)))
    for damage, name in (
        ({"bias_starts": np.zeros(1, np.int32)}, "bias_starts"),
        ({"bias_values": np.zeros(3, np.float32)}, "bias_values"),
        ({"banned_starts": np.array([0, 1], np.int32)}, "banned_ids"),
    ):
        with pytest.raises(ValueError, match=f"^{name}"):
            kernels.sample(torch.zeros(1, 9), dataclasses.replace(batch, **damage))
    for fields in ({"bias": {9: 1.0}}, {"banned": [-1]}):
        with pytest.raises(ValueError, match="outside the vocabulary"):
            kernels.sample(torch.zeros(1, 9), make_batch([fields], 9))
