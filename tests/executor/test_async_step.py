"""Steps on an asynchronous device give what they give when each is computed before the next is planned."""

from __future__ import annotations

import random
import select
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.checkpoints import EOS_ID, make_checkpoint
from support.scheduling import Bench
from support.step_driver import EPOCH, StepPlanner, greedy, load, prompt_of
from support.thread_device import ThreadDevice

from quire import kernels
from quire.columns import pack_u32, unpack_u32
from quire.executor.kv_cache import KvCache
from quire.executor.model import Model
from quire.executor.model_runner import ModelRunner
from quire.executor.pending_step import PendingStep
from quire.internal.v1 import executor_pb2
from quire.scheduler.step_plan import StepPlan
from quire.v1 import generate_pb2

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
    device = ThreadDevice()
    yield device
    device.close()


def runner_of(model: Model, device: ThreadDevice | None = None, *sizes: int, num_blocks: int = 64) -> ModelRunner:
    """With a pool; `sizes` of graphs."""
    runner = ModelRunner(model, device=device, graph_sizes=sizes)
    cache = KvCache.allocate(num_blocks, BLOCK_SIZE, model.cache_group, model.kv_cache_dtype, model.device)
    runner.adopt(cache, EPOCH)
    return runner


def check_equal(results: list[executor_pb2.StepResult], expected: list[executor_pb2.StepResult]) -> None:
    """But for the times, and the last bits of what is not a token."""
    for result, wanted in zip(results, expected, strict=True):
        assert result.step == wanted.step
        assert unpack_u32(result.slots) == unpack_u32(wanted.slots), result.step
        assert unpack_u32(result.token_ids) == unpack_u32(wanted.token_ids), result.step
        assert list(result.failures) == list(wanted.failures)
        ours, theirs = ([entry.logprobs for entry in answer.logprobs] for answer in (result, wanted))
        assert [list(entry.top_token_ids) for entry in ours] == [list(entry.top_token_ids) for entry in theirs]
        assert [entry.logprob for entry in ours] == pytest.approx([entry.logprob for entry in theirs], abs=1e-4)
        ours, theirs = (_prompt_logprobs(answer) for answer in (result, wanted))
        assert ours == pytest.approx(theirs, abs=1e-4)
        ours, theirs = (_embeddings(answer) for answer in (result, wanted))
        assert ours == pytest.approx(theirs, abs=1e-4)


def _prompt_logprobs(result: executor_pb2.StepResult) -> dict[tuple[int, int], float]:
    """By slot and position."""
    return {
        (entry.slot, entry.start + index): position.logprob
        for entry in result.prompt_logprobs
        for index, position in enumerate(entry.positions)
    }


def _embeddings(result: executor_pb2.StepResult) -> dict[tuple[int, int], float]:
    """By slot and dimension."""
    return {
        (entry.slot, index): float(value)
        for entry in result.embeddings
        for index, value in enumerate(np.frombuffer(entry.values, "<f4"))
    }


class LiveBench(Bench):
    """The real scheduler over a real runner, its plans launched as they are made."""

    def __init__(self, runner: ModelRunner, **limits: Any) -> None:
        super().__init__(block_size=BLOCK_SIZE, **limits)
        self._runner = runner
        self._pending: deque[PendingStep] = deque()
        self.results: list[executor_pb2.StepResult] = []

    def plan(self, lane: int = 0) -> StepPlan | None:
        plan = super().plan(lane)
        if plan is not None:
            message = executor_pb2.StepPlan.FromString(plan.to_proto(EPOCH).SerializeToString())
            self.messages.append(message)
            self._pending.append(self._runner.launch(message))
        return plan

    def finish_one(self) -> None:
        """Waits for the oldest step, if there is one."""
        if self.in_flight(0):
            self.compute()
            self.deliver()

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


@pytest.mark.parametrize(
    ("seed", "num_requests"),
    [(0, 8), (1, 8), *(pytest.param(seed, 30, marks=pytest.mark.slow) for seed in range(2, 6))],
)
def test_any_plans_give_what_they_give_one_by_one(
    model: Model, device: ThreadDevice, seed: int, num_requests: int
) -> None:
    """Few blocks, so that sequences are preempted; few tokens in a step, so that prompts come in chunks."""
    rng = random.Random(seed)
    sizes = (2, 4, 8) if seed % 2 else ()
    runner = runner_of(model, device, *sizes)
    bench = LiveBench(runner, num_blocks=14, max_num_seqs=6, max_num_batched_tokens=20, max_model_len=48)
    for number in range(num_requests):
        _submit(bench, rng, number)
        for _ in range(rng.randrange(6)):
            if bench.in_flight(0) == 2 or bench.plan() is None or rng.random() < 0.2:
                bench.finish_one()
            runner.use_pause(idle=rng.random() < 0.5)
        if rng.random() < 0.2:
            bench.scheduler.abort(rng.choice(list(bench.submitted)))
    bench.drain()
    bench.check_idle()
    assert any(new.output_token_ids for message in bench.messages for new in message.new_sequences), "none preempted"
    direct = runner_of(model, num_blocks=14)
    check_equal(bench.results, [direct.execute(message) for message in bench.messages])
    assert (device.num_replays > 0) == bool(sizes)


def _submit(bench: LiveBench, rng: random.Random, number: int) -> None:
    prompt = prompt_of(rng.choice([1, 3, 9, 25]), number)
    if rng.random() < 0.15:
        entry = bench.submit_beams(prompt, 2, max_tokens=5)
    else:
        fields = {"temperature": 0.0, **rng.choice(KINDS)}
        entry = bench.submit(prompt, max_tokens=rng.choice([1, 4, 12]), **fields)
    if rng.random() < 0.25:
        entry.request.constraints.grammar = GRAMMAR
        entry.request.eos_token_ids = frozenset({EOS_ID})


class Ahead(StepPlanner):
    """Plans that are launched on a device that waits, and what one by one they give."""

    def __init__(self, model: Model, device: ThreadDevice) -> None:
        super().__init__(BLOCK_SIZE)
        self.device = device
        self.runner = runner_of(model, device)
        self._direct = runner_of(model)
        self.expected: list[executor_pb2.StepResult] = []

    def launch(self, rows: dict[int, int], **changes: Any) -> PendingStep:
        plan = self.plan(rows)
        for name, value in changes.items():
            setattr(plan, name, value)
        self.expected.append(self._direct.execute(plan))
        return self.runner.launch(plan)


@pytest.fixture
def ahead(model: Model, device: ThreadDevice) -> Ahead:
    return Ahead(model, device)


def wait_readable(descriptor: int) -> None:
    assert select.select([descriptor], [], [], 60)[0]


def test_a_step_is_launched_before_the_one_before_it_is_computed(ahead: Ahead) -> None:
    first, second = (ahead.add(prompt_of(length, length)) for length in (9, 5))
    ahead.device.pause()
    steps = [ahead.launch({first: 9, second: 5}), ahead.launch({second: 1, first: 1})]
    assert not any(step.is_done for step in steps)
    # The table of sequences knows how many tokens there are, and not which.
    table = ahead.runner.sequences
    assert table.num_tokens[[first, second]].tolist() == [11, 7]
    assert table.num_unknown[[first, second]].tolist() == [2, 2]
    ahead.device.resume()
    wait_readable(ahead.runner.completion_fd or -1)
    check_equal([step.result() for step in steps], ahead.expected)
    assert table.num_unknown[[first, second]].tolist() == [0, 0]
    sampled = [unpack_u32(ahead.expected[0].token_ids)[0], unpack_u32(ahead.expected[1].token_ids)[1]]
    assert table.token_ids[first, 9:11].tolist() == sampled


def test_results_come_in_order_whichever_is_asked_for(ahead: Ahead) -> None:
    slot = ahead.add(prompt_of(9))
    first, second = ahead.launch({slot: 9}), ahead.launch({slot: 1})
    late = second.result()
    assert first.is_done
    check_equal([first.result(), late], ahead.expected)
    assert first.result() is first.result()
    assert first.result().finished_ns <= late.started_ns


def test_no_more_steps_are_in_flight_than_may_be(ahead: Ahead) -> None:
    """A third one waits for the first, whose buffers it takes over."""
    slot = ahead.add(prompt_of(9))
    steps = [ahead.launch({slot: 9}), *(ahead.launch({slot: 1}) for _ in range(9))]
    assert all(step.is_done for step in steps[:8])
    check_equal([step.result() for step in steps], ahead.expected)


def test_a_slot_is_in_use_again_while_its_last_step_runs(ahead: Ahead) -> None:
    """What is sampled for the sequence that is gone does not get into the one that came."""
    ahead.add(prompt_of(9), slot=3)
    ahead.device.pause()
    old = ahead.launch({3: 9})
    ahead.finish(3)
    ahead.add(prompt_of(6, seed=1), slot=3)
    new = ahead.launch({3: 6})
    ahead.device.resume()
    third = ahead.launch({3: 1})
    check_equal([old.result(), new.result(), third.result()], ahead.expected)
    table = ahead.runner.sequences
    assert (table.num_tokens[3], table.num_unknown[3]) == (8, 0)
    assert table.token_ids[3, :6].tolist() == prompt_of(6, seed=1)


def test_a_sequence_is_sent_again_with_its_output_while_its_last_step_runs(ahead: Ahead) -> None:
    """A preemption: the scheduler drops the token that is in flight, and what it knows it says."""
    slot = ahead.add(prompt_of(9))
    known = unpack_u32(ahead.launch({slot: 9}).result().token_ids)
    ahead.device.pause()
    dropped = ahead.launch({slot: 1})
    ahead.add(prompt_of(9), slot=slot, output=known)
    again = ahead.launch({slot: 10})
    ahead.device.resume()
    check_equal([dropped.result(), again.result()], ahead.expected[1:])
    assert unpack_u32(dropped.result().token_ids) == unpack_u32(again.result().token_ids)


def test_a_chosen_token_stays_whatever_is_sampled_in_its_place(ahead: Ahead) -> None:
    slot = ahead.add(prompt_of(9))
    ahead.device.pause()
    first = ahead.launch({slot: 9})
    second = ahead.launch({slot: 1}, chosen_slots=pack_u32([slot]), chosen_token_ids=pack_u32([17]))
    ahead.device.resume()
    check_equal([first.result(), second.result()], ahead.expected)
    assert ahead.runner.sequences.token_ids[slot, 9] == 17


@pytest.mark.parametrize(
    ("params", "constraints"),
    [
        ({"repetition_penalty": 1.5}, {}),
        ({"presence_penalty": 0.5}, {}),
        ({}, {"bad_words": [pack_u32([1, 2])]}),
        ({}, {"grammar": GRAMMAR}),
    ],
)
def test_rows_that_depend_on_their_tokens_wait_for_them(
    ahead: Ahead, params: dict[str, Any], constraints: dict[str, Any]
) -> None:
    slot = ahead.add(prompt_of(9), greedy(**params), constraints=executor_pb2.Constraints(**constraints))
    other = ahead.add(prompt_of(4))
    steps = [ahead.launch({slot: 9, other: 4}), ahead.launch({other: 1})]
    assert ahead.runner.sequences.num_unknown[slot] == 1
    steps.append(ahead.launch({slot: 1, other: 1}))
    assert steps[0].is_done and steps[1].is_done
    assert ahead.runner.sequences.num_unknown[slot] == 1
    check_equal([step.result() for step in steps], ahead.expected)


def test_the_table_of_tokens_grows_with_the_slots_while_steps_run(ahead: Ahead) -> None:
    low = ahead.add(prompt_of(9), slot=1)
    ahead.device.pause()
    first = ahead.launch({low: 9})
    high = ahead.add(prompt_of(5), slot=900)
    second = ahead.launch({high: 5, low: 1})
    ahead.device.resume()
    third = ahead.launch({low: 1, high: 1})
    check_equal([first.result(), second.result(), third.result()], ahead.expected)


def test_what_is_read_of_prompts_does_not_wait_for_its_steps(ahead: Ahead) -> None:
    """Embeddings and prompt logprobs, over several chunks of which two are in flight."""
    mean = ahead.add(prompt_of(20), pooling=generate_pb2.POOLING_TYPE_MEAN)
    last = ahead.add(prompt_of(20, 1), pooling=generate_pb2.POOLING_TYPE_LAST)
    scored = ahead.add(prompt_of(20, 2), greedy(prompt_logprobs=2))
    ahead.device.pause()
    steps = [ahead.launch({mean: 8, last: 15, scored: 10}), ahead.launch({scored: 9, mean: 6, last: 5})]
    ahead.device.resume()
    steps.append(ahead.launch({mean: 6, scored: 1}))
    check_equal([step.result() for step in steps], ahead.expected)
    assert [len(result.embeddings) for result in ahead.expected] == [0, 1, 1]


def test_a_step_without_rows_is_answered_in_its_turn(ahead: Ahead) -> None:
    slot = ahead.add(prompt_of(9))
    ahead.device.pause()
    first = ahead.launch({slot: 9})
    ahead.finish(slot)
    second = ahead.launch({})
    assert not second.is_done
    ahead.device.resume()
    check_equal([first.result(), second.result()], ahead.expected)


def test_a_device_that_fails_ends_its_steps_and_those_after(ahead: Ahead) -> None:
    slot = ahead.add(prompt_of(9))
    first = ahead.launch({slot: 9})
    first.result()
    ahead.device.fail("an illegal memory access was encountered")
    second = ahead.launch({slot: 1})
    for _ in range(2):
        with pytest.raises(RuntimeError, match="illegal memory access"):
            second.result()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        ahead.launch({slot: 1})
    ahead.runner.detach()


def test_a_pool_is_let_go_of_once_nothing_runs(ahead: Ahead) -> None:
    slot = ahead.add(prompt_of(9))
    ahead.device.pause()
    ahead.launch({slot: 9})
    threading.Timer(0.1, ahead.device.resume).start()
    ahead.runner.detach()
    assert ahead.device.is_idle
    assert len(ahead.runner.sequences) == 0
