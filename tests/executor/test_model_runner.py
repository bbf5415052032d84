"""Steps: plans ahead of results, copies, resubmission, and plans that contradict themselves."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import load_reference, make_checkpoint
from support.step_driver import EPOCH, StepDriver, greedy, load, on_offer, pool_layout, prompt_of

from quire import pool_file
from quire.columns import pack_u32, unpack_u32
from quire.errors import KvPoolError, QuireError
from quire.executor.model import Model
from quire.executor.model_runner import ModelRunner
from quire.internal.v1 import executor_pb2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(make_checkpoint(tmp_path_factory.mktemp("model"), "llama"))


@pytest.fixture
def driver(model: Model, tmp_path: Path) -> StepDriver:
    return StepDriver(model, tmp_path)


SAMPLED: dict[str, Any] = {
    "temperature": 1.2,
    "seed": 99,
    "top_p": 0.95,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.2,
    "repetition_penalty": 1.1,
    "min_tokens": 5,
}


def test_plans_ahead_of_results_name_tokens_that_only_the_executor_knows(
    model: Model, driver: StepDriver, tmp_path: Path
) -> None:
    expected = driver.generate(driver.add(prompt_of(20), greedy(**SAMPLED)), 6)
    ahead = StepDriver(model, tmp_path)
    slot = ahead.add(prompt_of(20), greedy(**SAMPLED))
    plans = [ahead.plan({slot: 20}), *(ahead.plan({slot: 1}) for _ in range(5))]
    tokens = [unpack_u32(ahead.runner.execute(plan).token_ids)[0] for plan in plans]
    assert tokens == expected


def test_a_resubmitted_sequence_goes_on_as_if_nothing_had_happened(
    model: Model, driver: StepDriver, tmp_path: Path
) -> None:
    """Penalties, min_tokens and random numbers all depend on what was output before."""
    slot = driver.add(prompt_of(20), greedy(**SAMPLED), eos_token_ids=(3,))
    expected = driver.generate(slot, 12)
    for done in (1, 4, 7):
        again = StepDriver(model, tmp_path)
        slot = again.add(prompt_of(20), greedy(**SAMPLED), output=expected[:done], eos_token_ids=(3,))
        assert again.generate(slot, 12, chunk=9) == expected


def test_a_freed_slot_holds_a_new_sequence(model: Model, driver: StepDriver, tmp_path: Path) -> None:
    first = driver.add(prompt_of(20), slot=5)
    driver.generate(first, 3)
    driver.finish(first)
    second = driver.add(prompt_of(9, seed=1), slot=5)
    output = driver.generate(second, 3)
    assert len(driver.runner.sequences) == 1
    fresh = StepDriver(model, tmp_path)
    assert fresh.generate(fresh.add(prompt_of(9, seed=1)), 3) == output


def test_block_copies_run_before_the_forward_pass(driver: StepDriver) -> None:
    """A fork: the second sequence shares a full block and has its own copy of the partial one."""
    first = driver.add(prompt_of(24))
    expected = driver.generate(first, 4)
    driver.add(prompt_of(24), slot=9)
    driver.share(first, 9, 1)
    own = driver.reserve(9, 24)[1]
    driver.sequences[9].computed = 23
    result = driver.run({9: 1}, copies={driver.sequences[first].blocks[1]: own})
    assert unpack_u32(result.token_ids) == expected[:1]
    assert driver.generate(9, 4) == expected


def test_continuations_of_one_seed_differ(driver: StepDriver) -> None:
    params = greedy(temperature=1.5, seed=4)
    slots = [driver.add(prompt_of(10), params, sequence_index=index) for index in range(3)]
    outputs = [driver.generate(slot, 8) for slot in slots]
    assert len({tuple(output) for output in outputs}) == 3


def test_results_are_in_row_order_with_times(driver: StepDriver) -> None:
    slots = [driver.add(prompt_of(5, seed)) for seed in range(4)]
    before = time.monotonic_ns()
    result = driver.run({slots[2]: 5, slots[0]: 3, slots[3]: 5})
    assert unpack_u32(result.slots) == [slots[2], slots[3]]
    assert before < result.started_ns < result.finished_ns < time.monotonic_ns()
    assert (result.epoch, result.step) == (EPOCH, 1)


def test_logprobs_name_their_rows(driver: StepDriver) -> None:
    first, second = driver.add(prompt_of(5)), driver.add(prompt_of(6), greedy(logprobs=3))
    (entry,) = driver.run({first: 5, second: 6}).logprobs
    assert entry.row == 1
    assert len(entry.logprobs.top_token_ids) == 3
    assert entry.logprobs.top_token_ids[0] == driver.sequences[second].output[0]
    assert entry.logprobs.top_logprobs[0] == entry.logprobs.logprob


def test_where_every_token_is_banned_there_is_a_warning(driver: StepDriver, caplog: pytest.LogCaptureFixture) -> None:
    every = range(driver.runner.model.config.vocab_size)
    slot = driver.add(prompt_of(5), greedy(temperature=1.0, min_tokens=1, stop_token_ids=every))
    assert driver.generate(slot, 1) == [0]
    assert "step 1: no token of 1 sequences has a logit that is a number" in caplog.text


def test_a_plan_without_rows_only_frees(driver: StepDriver) -> None:
    slot = driver.add(prompt_of(5))
    driver.run({slot: 5})
    driver.finish(slot)
    result = driver.run({})
    assert not result.slots and len(driver.runner.sequences) == 0


def test_dynamic_scaling_depends_on_the_prompts_length_alone(tmp_path: Path) -> None:
    """Recomputing a sequence with its output gives the angles of its first computation."""
    folder = make_checkpoint(
        tmp_path / "dynamic",
        "llama",
        max_position_embeddings=16,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0},
    )
    model = load(folder)
    driver = StepDriver(model, tmp_path)
    expected = driver.generate(driver.add(prompt_of(24)), 10)
    again = StepDriver(model, tmp_path)
    assert again.generate(again.add(prompt_of(24), output=expected[:6]), 10, chunk=5) == expected
    reference = load_reference(folder)
    generated = reference.generate(
        input_ids=torch.tensor([prompt_of(24)]), max_new_tokens=10, do_sample=False, eos_token_id=None
    )
    assert generated[0, 24:].tolist() == expected


def test_without_a_pool_nothing_runs(model: Model, driver: StepDriver) -> None:
    driver.add(prompt_of(5))
    with pytest.raises(KvPoolError, match="no KV pool is attached"):
        ModelRunner(model).execute(driver.plan({0: 5}))


def test_a_plan_of_another_epoch_is_refused(driver: StepDriver) -> None:
    driver.add(prompt_of(5))
    driver.epoch += 1
    with pytest.raises(KvPoolError, match="epoch 8, the attached KV pool of epoch 7"):
        driver.runner.execute(driver.plan({0: 5}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda plan: plan.ClearField("new_sequences"), "slot 0, which holds no sequence"),
        (lambda plan: setattr(plan, "query_lengths", pack_u32([6])), "which has 5 tokens"),
        (lambda plan: setattr(plan, "query_lengths", pack_u32([4])), "which has 5 tokens"),
        (lambda plan: setattr(plan, "query_lengths", pack_u32([0])), "computes tokens 0 to 0"),
        (lambda plan: setattr(plan, "query_lengths", b""), "differ in length"),
        (lambda plan: setattr(plan, "slots", pack_u32([0]) + b"\1"), "differ in length"),
        (lambda plan: setattr(plan, "samples", b"\1\1"), "differ in length"),
        (lambda plan: setattr(plan.block_tables[0], "kept", pack_u32([1])), "keeps 1 blocks of slot 0, which has 0"),
        (lambda plan: setattr(plan.block_tables[0], "block_ids", b""), "block tables differ in length"),
        (lambda plan: plan.ClearField("block_tables"), "cache group 0"),
        (
            lambda plan: plan.block_tables[0].MergeFrom(executor_pb2.BlockTableUpdate(cache_group=1)),
            "cache group 0",
        ),
    ],
)
def test_contradictory_plans_are_refused(
    driver: StepDriver, damage: Callable[[executor_pb2.StepPlan], None], message: str
) -> None:
    driver.add(prompt_of(5))
    plan = driver.plan({0: 5})
    damage(plan)
    with pytest.raises(QuireError, match=message):
        driver.runner.execute(plan)


def test_a_block_table_that_is_too_short_is_refused(driver: StepDriver) -> None:
    driver.add(prompt_of(40))
    plan = driver.plan({0: 40})
    update = plan.block_tables[0]
    update.appended, update.block_ids = pack_u32([2]), pack_u32([0, 1])
    with pytest.raises(QuireError, match="has 2 blocks and needs 3"):
        driver.runner.execute(plan)


def test_a_replaced_pool_is_unmapped(model: Model, tmp_path: Path) -> None:
    runner = ModelRunner(model)
    for epoch in (1, 2):
        path = tmp_path / f"pool-{epoch}"
        with (
            pool_file.create(path, pool_layout(model, num_blocks=4, epoch=epoch)) as pool,
            on_offer(pool, tmp_path / "pool.sock") as request,
        ):
            runner.attach(request)
        gc.collect()
        maps = Path("/proc/self/maps").read_text()
        assert [f"{tmp_path}/pool-{i}" in maps for i in (1, 2)] == [epoch == 1, epoch == 2]


def test_a_cpu_executor_wants_a_pool_that_is_shared(model: Model) -> None:
    request = executor_pb2.AttachKvPoolRequest(
        epoch=1, num_blocks=4, block_size=16, executor_memory=executor_pb2.ExecutorMemory()
    )
    with pytest.raises(KvPoolError, match="processes share"):
        ModelRunner(model).attach(request)
    with pytest.raises(KvPoolError, match="no home"):
        ModelRunner(model).attach(executor_pb2.AttachKvPoolRequest(epoch=1))


@pytest.mark.parametrize("kv_cache_dtype", ["bfloat16", "int8"])
def test_a_narrower_cache(kv_cache_dtype: str, driver: StepDriver, tmp_path: Path) -> None:
    """Nearly the numbers of the wide one, and the same whatever the chunks."""
    narrow = load(make_checkpoint(tmp_path / "narrow", "llama"), kv_cache_dtype=kv_cache_dtype)
    runs = [StepDriver(narrow, tmp_path) for _ in range(2)]
    outputs = [
        run.generate(run.add(prompt_of(60), greedy(logprobs=1)), 6, chunk=chunk)
        for run, chunk in zip(runs, (60, 7), strict=True)
    ]
    assert outputs[0] == outputs[1]
    exact, near = (
        run.run({run.add(prompt_of(60), greedy(logprobs=3)): 60}).logprobs[0].logprobs for run in (driver, runs[0])
    )
    assert near.logprob == pytest.approx(exact.logprob, abs=0.05)
    assert near.logprob != exact.logprob, "the cache was not used"
