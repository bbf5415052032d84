"""Logprobs of prompts and embeddings, against transformers and bit for bit against themselves."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import EOS_ID, load_reference, make_checkpoint
from support.step_driver import StepDriver, greedy, load, prompt_of

from quire import kernels
from quire.errors import QuireError
from quire.executor.model import Model
from quire.executor.readouts import LastState
from quire.internal.v1 import executor_pb2
from quire.v1 import generate_pb2

LAST, MEAN = generate_pb2.POOLING_TYPE_LAST, generate_pb2.POOLING_TYPE_MEAN
PROMPT = prompt_of(150, seed=3)
TOP = 5


@pytest.fixture(scope="module", params=["native", "torch"])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    kernels.set_implementation(request.param)
    yield request.param
    kernels.set_implementation(None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), "qwen3", hidden_size=90)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return load_reference(folder)


@pytest.fixture(scope="module")
def model(folder: Path, implementation: str) -> Model:
    return load(folder)


@pytest.fixture
def driver(model: Model, tmp_path: Path) -> StepDriver:
    return StepDriver(model, tmp_path, num_blocks=2048)


class Collected:
    """What steps gave one slot."""

    def __init__(self, driver: StepDriver, slot: int) -> None:
        self.driver = driver
        self.slot = slot
        self.positions: dict[int, generate_pb2.TokenLogprobs] = {}
        self.embedding: np.ndarray | None = None

    @property
    def missing(self) -> int:
        planned = self.driver.sequences[self.slot]
        return len(planned.prompt) - planned.computed

    def step(self, count: int, others: dict[int, int] | None = None) -> executor_pb2.StepResult:
        result = self.driver.run({**(others or {}), self.slot: count})
        for entry in result.prompt_logprobs:
            if entry.slot == self.slot:
                self.positions.update(enumerate(entry.positions, start=entry.start))
        for embedding in result.embeddings:
            if embedding.slot == self.slot:
                assert self.embedding is None, "an embedding comes once"
                self.embedding = np.frombuffer(embedding.values, "<f4")
        return result

    def logprobs(self) -> np.ndarray:
        assert list(self.positions) == list(range(1, len(self.driver.sequences[self.slot].prompt)))
        return np.array([position.logprob for position in self.positions.values()])


def chunked(collected: Collected, seed: int) -> None:
    chooser = random.Random(seed)
    while collected.missing:
        collected.step(min(chooser.randrange(1, 40), collected.missing))


def among_others(collected: Collected) -> None:
    """Others sample, report and pool beside it, and come before it in the batch."""
    driver, chooser = collected.driver, random.Random(5)
    others = [
        driver.add(prompt_of(200, seed=50 + i), greedy(prompt_logprobs=i), slot=100 + i, pooling=pooling)
        for i, pooling in enumerate([0, LAST, MEAN, 0, 0])
    ]
    while collected.missing:
        rows = {slot: chooser.randrange(1, 9) for slot in others}
        collected.step(min(chooser.randrange(1, 30), collected.missing), rows)


def scored(driver: StepDriver, slot: int) -> Collected:
    return Collected(driver, driver.add(PROMPT, greedy(prompt_logprobs=TOP), slot=slot))


def pooled(driver: StepDriver, slot: int, pooling: Any, prompt: list[int] = PROMPT) -> Collected:
    return Collected(driver, driver.add(prompt, slot=slot, pooling=pooling))


def test_prompt_logprobs_equal_transformers(driver: StepDriver, reference: Any) -> None:
    collected = scored(driver, 0)
    result = collected.step(len(PROMPT))
    with torch.no_grad():
        expected = torch.log_softmax(reference(torch.tensor([PROMPT])).logits[0, :-1].double(), dim=-1)
    at = np.arange(len(PROMPT) - 1)
    np.testing.assert_allclose(collected.logprobs(), expected.numpy()[at, PROMPT[1:]], atol=1e-4, rtol=0)
    values, ids = expected.topk(TOP)
    for position, top_values, top_ids in zip(collected.positions.values(), values, ids, strict=True):
        np.testing.assert_allclose(position.top_logprobs, top_values.numpy(), atol=1e-4, rtol=0)
        apart = top_values.diff().abs().min() > 1e-3
        assert not apart or list(position.top_token_ids) == top_ids.tolist()
    assert len(result.token_ids) == 4, "it also samples"


def test_prompt_logprobs_however_they_are_computed(driver: StepDriver, implementation: str) -> None:
    """Products of torch may differ in the last bits with the number of rows; ours never do."""
    runs = [scored(driver, slot) for slot in range(3)]
    runs[0].step(len(PROMPT))
    chunked(runs[1], seed=1)
    among_others(runs[2])
    alone = runs[0].logprobs()
    for other in runs[1:]:
        if implementation == "native":
            np.testing.assert_array_equal(other.logprobs(), alone)
            assert other.positions == runs[0].positions
        else:
            np.testing.assert_allclose(other.logprobs(), alone, atol=1e-4, rtol=0)


def test_a_prompt_of_one_token_has_none(driver: StepDriver) -> None:
    slot = driver.add([7], greedy(prompt_logprobs=1))
    result = driver.run({slot: 1})
    assert not result.prompt_logprobs
    assert len(result.token_ids) == 4


def test_outputs_are_not_scored_again(driver: StepDriver) -> None:
    """A recomputed sequence reports its prompt, not what it generated."""
    slot = driver.add(PROMPT[:20], greedy(prompt_logprobs=0), output=[1, 2, 3])
    result = driver.run({slot: 23})
    (entry,) = result.prompt_logprobs
    assert (entry.start, len(entry.positions)) == (1, 19)
    assert not driver.run({slot: 1}).prompt_logprobs


@pytest.mark.parametrize("pooling", [LAST, MEAN])
@pytest.mark.parametrize("length", [1, 40, 150])
def test_embeddings_equal_transformers(driver: StepDriver, reference: Any, pooling: Any, length: int) -> None:
    collected = pooled(driver, 0, pooling, PROMPT[:length])
    result = collected.step(length)
    with torch.no_grad():
        states = reference.model(torch.tensor([PROMPT[:length]])).last_hidden_state[0].double()
    expected = states[-1] if pooling == LAST else states.mean(dim=0)
    np.testing.assert_allclose(collected.embedding, expected.numpy(), atol=1e-4, rtol=0)
    assert not result.token_ids


@pytest.mark.parametrize("pooling", [LAST, MEAN])
def test_embeddings_however_they_are_computed(driver: StepDriver, implementation: str, pooling: Any) -> None:
    runs = [pooled(driver, slot, pooling) for slot in range(4)]
    runs[0].step(len(PROMPT))
    chunked(runs[1], seed=1)
    among_others(runs[2])
    preempted = runs[3]
    preempted.step(70)
    driver.finish(preempted.slot)
    preempted = pooled(driver, preempted.slot, pooling)
    chunked(preempted, seed=2)
    alone = runs[0].embedding
    assert alone is not None
    for other in (runs[1], runs[2], preempted):
        if implementation == "native":
            np.testing.assert_array_equal(other.embedding, alone)
        else:
            np.testing.assert_allclose(other.embedding, alone, atol=1e-4, rtol=0)


def test_the_last_tokens_state_may_follow_a_prefix_hit(driver: StepDriver, implementation: str) -> None:
    first = pooled(driver, 0, LAST)
    first.step(len(PROMPT))
    second = pooled(driver, 1, LAST)
    driver.share(0, 1, 5)
    second.step(second.missing)
    exact = {"atol": 0} if implementation == "native" else {"atol": 1e-4}
    np.testing.assert_allclose(second.embedding, first.embedding, rtol=0, **exact)


def test_a_mean_with_a_gap_is_refused(driver: StepDriver) -> None:
    pooled(driver, 0, LAST).step(len(PROMPT))
    pooled(driver, 1, MEAN)
    driver.share(0, 1, 5)
    with pytest.raises(QuireError, match="computes tokens from 80 of slot 1, whose mean has 0"):
        driver.run({1: 70})


def test_a_pooling_of_the_future_is_refused(driver: StepDriver) -> None:
    driver.add(PROMPT, pooling=9)  # type: ignore[arg-type]
    with pytest.raises(QuireError, match="pooling 9"):
        driver.run({0: len(PROMPT)})


def test_a_slot_used_again_forgets(driver: StepDriver) -> None:
    first = pooled(driver, 0, LAST)
    first.step(len(PROMPT))
    driver.finish(0)
    driver.add(PROMPT, slot=0)
    result = driver.run({0: len(PROMPT)})
    assert not result.embeddings
    assert len(result.token_ids) == 4


def test_a_grammar_does_not_change_what_is_read(driver: StepDriver) -> None:
    """A step with masks takes its logits out of the forward pass; its states are the same."""
    plain = scored(driver, 0)
    plain.step(len(PROMPT))
    constraints = executor_pb2.Constraints(grammar="start: /[ab]+/")
    slot = driver.add(PROMPT, greedy(prompt_logprobs=TOP), slot=1, constraints=constraints, eos_token_ids=(EOS_ID,))
    constrained = Collected(driver, slot)
    result = constrained.step(len(PROMPT))
    assert not result.failures
    assert constrained.positions == plain.positions


def test_states_of_tokens_that_are_not_there_are_refused(
    driver: StepDriver, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if implementation == "torch":
        pytest.skip("torch checks its own indices")
    monkeypatch.setattr(LastState, "wanted", lambda self, start, end: range(end, end + 1))
    collected = pooled(driver, 0, LAST)
    with pytest.raises(ValueError, match=r"state_rows\[0\] is 150, outside \[0, 150\)"):
        collected.step(len(PROMPT))
