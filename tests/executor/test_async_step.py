"""Steps on an asynchronous device give what they give when each is computed before the next is planned."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.checkpoints import EOS_ID, make_checkpoint
from support.scheduling import Bench
from support.step_driver import EPOCH, load, prompt_of
from support.thread_device import ThreadDevice

from quire import kernels
from quire.columns import unpack_u32
from quire.executor.kv_cache import KvCache
from quire.executor.model import Model
from quire.executor.model_runner import ModelRunner
from quire.executor.pending_step import PendingStep
from quire.internal.v1 import executor_pb2

BLOCK_SIZE = 4
GRAMMAR = '{"grammars": [{"lark_grammar": "start: /[ab]{3,9}/"}]}'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """With torch's operators: what an asynchronous device has without Triton."""
    kernels.set_implementation("torch")
    yield load(make_checkpoint(tmp_path_factory.mktemp("model"), "qwen3"))
    kernels.set_implementation(None)


@pytest.fixture
def device() -> Iterator[ThreadDevice]:
    device = ThreadDevice(can_capture=True)
    yield device
    device.close()


def runner_of(model: Model, device: ThreadDevice | None = None, *sizes: int, num_blocks: int = 64) -> ModelRunner:
    runner = ModelRunner(model, device=device, graph_sizes=sizes)
    cache = KvCache.allocate(num_blocks, BLOCK_SIZE, model.cache_group, model.kv_cache_dtype, model.device)
    runner.adopt(cache, EPOCH)
    return runner


def check_equal(results: list[executor_pb2.StepResult], expected: list[executor_pb2.StepResult]) -> None:
    assert [result.step for result in results] == [result.step for result in expected]
    for result, wanted in zip(results, expected, strict=True):
        assert unpack_u32(result.slots) == unpack_u32(wanted.slots), result.step
        assert unpack_u32(result.token_ids) == unpack_u32(wanted.token_ids), result.step
        assert list(result.failures) == list(wanted.failures)
        assert [list(entry.logprobs.top_token_ids) for entry in result.logprobs] == [
            list(entry.logprobs.top_token_ids) for entry in wanted.logprobs
        ]
        for ours, theirs in ((result.prompt_logprobs, wanted.prompt_logprobs),):
            assert [(entry.slot, entry.start, len(entry.positions)) for entry in ours] == [
                (entry.slot, entry.start, len(entry.positions)) for entry in theirs
            ]
        assert [entry.slot for entry in result.embeddings] == [entry.slot for entry in wanted.embeddings]
        for ours, theirs in zip(result.embeddings, wanted.embeddings, strict=True):
            np.testing.assert_allclose(
                np.frombuffer(ours.values, "<f4"), np.frombuffer(theirs.values, "<f4"), atol=1e-4
            )


class LiveBench(Bench):
    """The real scheduler over a real runner, its plans launched as they are made."""

    def __init__(self, runner: ModelRunner, **limits: Any) -> None:
        super().__init__(block_size=BLOCK_SIZE, **limits)
        self._runner = runner
        self._pending: deque[PendingStep] = deque()
        self.results: list[executor_pb2.StepResult] = []

    def plan(self, lane: int = 0) -> Any:
        plan = super().plan(lane)
        if plan is not None:
            message = executor_pb2.StepPlan.FromString(plan.to_proto(EPOCH).SerializeToString())
            self.messages.append(message)
            self._pending.append(self._runner.launch(message))
        return plan

    def compute(self, lane: int = 0) -> None:
        plan = self.lanes[lane].sent.popleft()
        result = self._pending.popleft().result()
        self.results.append(result)
        self.lanes[lane].computed.append((plan, result))


KINDS: list[dict[str, Any]] = [
    {},
    {"n": 3},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 0.8, "seed": 6, "top_p": 0.9, "n": 2},
    {"repetition_penalty": 1.3},
    {"frequency_penalty": 0.5, "temperature": 1.0, "seed": 7},
    {"logprobs": 2},
    {"stop": (7, 8, 9)},
    {"min_tokens": 3, "stop": tuple(range(0, 300, 3))},
]


@pytest.mark.parametrize("seed", range(6))
def test_any_plans_give_what_they_give_one_by_one(model: Model, device: ThreadDevice, seed: int) -> None:
    """Few blocks, so that sequences are preempted; few tokens in a step, so that prompts come in chunks."""
    rng = random.Random(seed)
    sizes = (2, 4, 8) if seed % 2 else ()
    runner = runner_of(model, device, *sizes)
    bench = LiveBench(runner, num_blocks=24, max_num_seqs=6, max_num_batched_tokens=20, max_model_len=48)
    steps = 0
    for number in range(14):
        fields = dict(rng.choice(KINDS))
        prompt = prompt_of(rng.choice([1, 3, 9, 25]), number)
        if rng.random() < 0.15:
            entry = bench.submit_beams(prompt, 2, max_tokens=5)
        else:
            entry = bench.submit(prompt, max_tokens=rng.choice([1, 4, 12]), **{"temperature": 0.0, **fields})
        if rng.random() < 0.25:
            entry.request.constraints.grammar = GRAMMAR
            entry.request.eos_token_ids = frozenset({EOS_ID})
        for _ in range(rng.randrange(6)):
            if bench.in_flight(0) < 2 and bench.plan() is not None and rng.random() < 0.8:
                continue
            if bench.in_flight(0):
                bench.compute()
                bench.deliver()
            steps += 1
            if sizes:
                runner.use_pause(idle=rng.random() < 0.5)
        if rng.random() < 0.2:
            bench.scheduler.abort(rng.choice(list(bench.submitted)))
    bench.drain()
    bench.check_idle()
    assert not len(runner.sequences) or bench.results
    direct = runner_of(model, num_blocks=24)
    check_equal(bench.results, [direct.execute(message) for message in bench.messages])
    assert any(plan.num_prefill_tokens for plan in bench.plans)
    if sizes:
        assert device.num_replays > 0
