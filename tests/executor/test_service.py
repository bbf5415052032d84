"""ExecutorService on a Unix socket; steps both over gRPC and through rings, by the scheduler's own channels."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import make_checkpoint
from support.processes import open_descriptors
from support.step_driver import EPOCH, StepDriver, StepPlanner, attach_request, load, pool_layout, prompt_of

from quire import rpc
from quire.columns import pack_u32, unpack_u32
from quire.config import StepTransport
from quire.errors import DuplicateRequestError, KvPoolError, QuireError, RingError, ServiceUnavailableError
from quire.executor.model import Model
from quire.executor.model_runner import ModelRunner
from quire.executor.pending_step import PendingStep
from quire.executor.service import ExecutorService
from quire.handover import offered
from quire.internal.v1 import executor_pb2, executor_pb2_grpc
from quire.kv_pool import KvPool
from quire.scheduler.executor_client import ExecutorClient, StepChannel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(make_checkpoint(tmp_path_factory.mktemp("model"), "qwen3"))


@dataclass
class Served:
    """A client of a served model, and the pool that it hands over."""

    stub: executor_pb2_grpc.ExecutorServiceAsyncStub
    client: ExecutorClient
    runner: ModelRunner
    model: Model
    folder: Path
    transport: StepTransport

    @contextlib.contextmanager
    def new_pool(self, epoch: int = EPOCH) -> Iterator[executor_pb2.AttachKvPoolRequest]:
        """What has an executor attach a pool, within the block."""
        with KvPool.create_memfd(pool_layout(self.model, epoch=epoch)) as pool, offered("pool", [pool.fd]) as address:
            yield attach_request(pool.layout, address)

    async def attach(self, epoch: int = EPOCH) -> None:
        with self.new_pool(epoch) as request:
            await self.stub.AttachKvPool(request)

    @contextlib.asynccontextmanager
    async def steps(self) -> AsyncIterator[StepChannel]:
        channel = await self.client.open_steps(self.transport, 10)
        try:
            yield channel
        finally:
            await channel.close()

    async def wait_detached(self) -> None:
        async with asyncio.timeout(10):
            while self.runner._cache is not None:
                await asyncio.sleep(0.01)


@pytest.fixture(params=["ring", "grpc"])
async def served(model: Model, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    runner = ModelRunner(model)
    service = ExecutorService(runner)
    server = rpc.new_server()
    executor_pb2_grpc.add_ExecutorServiceServicer_to_server(service, server)
    address = f"unix:{tmp_path}/executor.sock"
    rpc.bind(server, address)
    await server.start()
    async with rpc.open_channel(address) as channel:
        client = ExecutorClient(0, address)
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        yield Served(stub, client, runner, model, tmp_path, request.param)
        await client.close()
    await service.close()
    await server.stop(1)


async def read(channel: StepChannel) -> executor_pb2.StepResult:
    return await asyncio.wait_for(channel.receive(), 20)


@contextlib.contextmanager
def raises(error: type[QuireError], match: str) -> Iterator[None]:
    with pytest.raises(error, match=match) as caught, rpc.errors_from_status():
        yield
    assert type(caught.value) is error


async def test_describe(served: Served) -> None:
    description = await served.stub.Describe(executor_pb2.DescribeExecutorRequest())
    assert description.architecture == "Qwen3ForCausalLM"
    assert (description.dtype, description.device) == ("float32", executor_pb2.DEVICE_CPU)
    assert (description.rank, description.num_ranks) == (0, 1)
    assert (description.max_model_len, description.vocab_size, description.hidden_size) == (512, 320, 64)
    (group,) = description.cache_groups
    assert group.kind == executor_pb2.CACHE_GROUP_KIND_FULL_ATTENTION
    assert group.bytes_per_token == 2 * 3 * 2 * 32 * 4
    assert (group.element_bytes, group.scale_bytes) == (4, 0)
    assert description.fingerprint == served.model.fingerprint
    assert description.weight_bytes > 100_000 and description.available_bytes > 1 << 20
    assert not description.HasField("length_independent_tokens")
    assert description.pid == os.getpid()


async def test_steps_over_a_pool_handed_over_by_descriptor(served: Served) -> None:
    """Plans are sent ahead of the results, which come in order."""
    expected_driver = StepDriver(served.model, served.folder)
    expected = expected_driver.generate(expected_driver.add(prompt_of(50)), 8)

    with KvPool.create_memfd(pool_layout(served.model)) as pool:
        with offered("pool", [pool.fd]) as address:
            await served.stub.AttachKvPool(attach_request(pool.layout, address))
        planner = StepPlanner()
        slot = planner.add(prompt_of(50))
        async with served.steps() as channel:
            for count in (30, 20, *[1] * 7):
                await channel.send(planner.plan({slot: count}))
            results = [await read(channel) for _ in range(9)]
        assert [result.step for result in results] == list(range(1, 10))
        assert [token for result in results for token in unpack_u32(result.token_ids)] == expected
        # The executor wrote into the very memory that this process made.
        assert np.count_nonzero(np.frombuffer(pool.segment(0), dtype=np.float32)) > 0


async def test_two_executors_on_one_pool_read_each_others_blocks(served: Served, model: Model) -> None:
    expected_driver = StepDriver(model, served.folder)
    expected = expected_driver.generate(expected_driver.add(prompt_of(40)), 4)

    other = ModelRunner(model)
    with served.new_pool() as request:
        await served.stub.AttachKvPool(request)
        await asyncio.to_thread(other.attach, request)
    planner = StepPlanner()
    slot = planner.add(prompt_of(40))
    async with served.steps() as channel:
        await channel.send(planner.plan({slot: 40}))
        await read(channel)

    theirs = StepPlanner()
    hit = theirs.add(prompt_of(40))
    theirs.sequences[hit].blocks = planner.sequences[slot].blocks[:2]
    theirs.sequences[hit].computed = 32
    theirs._next_block = 100
    theirs.accept(other.execute(theirs.plan({hit: 8})))
    while len(theirs.sequences[hit].output) < 4:
        theirs.accept(other.execute(theirs.plan({hit: 1})))
    assert theirs.sequences[hit].output == expected


async def test_a_second_stream_is_refused(served: Served) -> None:
    await served.attach()
    planner = StepPlanner()
    planner.add(prompt_of(5))
    async with served.steps() as first:
        await first.send(planner.plan({0: 5}))
        await read(first)
        with raises(DuplicateRequestError, "another stream of steps is open"):
            async with served.steps() as second:
                await read(second)
        await first.send(planner.plan({0: 1}))
        assert (await read(first)).step == 2


async def test_a_stream_that_ends_lets_go_of_the_pool(served: Served) -> None:
    """Its scheduler is gone; the next one attaches a pool of its own, and the old one's memory is free."""
    for _ in range(2):
        await served.attach()
        planner = StepPlanner()
        planner.add(prompt_of(5))
        async with served.steps() as channel:
            await channel.send(planner.plan({0: 5}))
            assert len(unpack_u32((await read(channel)).token_ids)) == 1
        await served.wait_detached()


async def test_a_stream_leaves_no_descriptor_and_no_thread(served: Served) -> None:
    """The first one leaves gRPC's connection and its threads; the second one nothing more."""
    counts = []
    for _ in range(2):
        await served.attach()
        planner = StepPlanner()
        planner.add(prompt_of(5))
        async with served.steps() as channel:
            await channel.send(planner.plan({0: 5}))
            await read(channel)
        await served.wait_detached()
        counts.append((open_descriptors(), threading.active_count()))
    assert counts[0] == counts[1]


async def test_rings_that_cannot_be_had_leave_the_pool_attached(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as those of a scheduler in another container, which then sends its steps over gRPC."""

    def attach(address: Path) -> None:
        raise RingError(f"no rings are handed over at {address}")

    monkeypatch.setattr("quire.executor.step_stream.StepRings.attach", attach)
    served.transport = "auto"
    await served.attach()
    planner = StepPlanner()
    planner.add(prompt_of(5))
    async with served.steps() as channel:
        await channel.send(planner.plan({0: 5}))
        assert (await read(channel)).step == 1


async def test_a_plan_of_another_epoch_ends_the_stream(served: Served) -> None:
    await served.attach()
    planner = StepPlanner(epoch=EPOCH + 1)
    planner.add(prompt_of(5))
    async with served.steps() as channel:
        await channel.send(planner.plan({0: 5}))
        with raises(KvPoolError, "epoch 8, the attached KV pool of epoch 7"):
            await read(channel)


async def test_a_failing_step_ends_the_stream_with_its_message_and_traceback(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """A token outside the vocabulary: validation's business, so here it is a defect. The next plan is not run."""
    await served.attach()
    planner = StepPlanner()
    planner.add([1, 2, 3])
    planner.add([1, 2, 999])
    planner.add([1, 2, 3])
    async with served.steps() as channel:
        for slot in range(3):
            with contextlib.suppress(QuireError):
                await channel.send(planner.plan({slot: 3}))
        assert (await read(channel)).step == 1
        for _ in range(2):
            with raises(QuireError, "step 2 failed: ValueError: token_ids.2. is 999"):
                await read(channel)
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.getMessage() == "step 2 failed"
    assert record.exc_info is not None

    # The executor itself is unharmed: with a new pool it serves on.
    await served.attach(EPOCH + 1)
    planner = StepPlanner(epoch=EPOCH + 1)
    planner.add([1, 2, 3])
    async with served.steps() as channel:
        await channel.send(planner.plan({0: 3}))
        assert len(unpack_u32((await read(channel)).token_ids)) == 1


async def test_a_new_epoch_forgets_sequences_and_ends_the_old_stream(served: Served) -> None:
    await served.attach()
    planner = StepPlanner()
    planner.add(prompt_of(5))
    async with served.steps() as old:
        await old.send(planner.plan({0: 5}))
        planner.accept(await read(old))

        await served.attach(EPOCH + 1)
        with raises(ServiceUnavailableError, "another KV pool"):
            await read(old)
        planner.epoch = EPOCH + 1
        async with served.steps() as new:
            await new.send(planner.plan({0: 1}))
            with raises(QuireError, "slot 0, which holds no sequence"):
                await read(new)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"handover_socket": "/not/there"}, "no KV pool is handed over"),
        ({"num_blocks": 255}, "announced were 255"),
        ({"epoch": 8}, "epoch 8"),
    ],
)
async def test_pools_that_cannot_be_attached(served: Served, changes: dict[str, Any], message: str) -> None:
    with served.new_pool() as request:
        for name, value in changes.items():
            setattr(request, name, value)
        with raises(KvPoolError, message):
            await served.stub.AttachKvPool(request)
    # Nothing is attached now: plans are refused rather than run on something else.
    planner = StepPlanner()
    planner.add(prompt_of(5))
    async with served.steps() as channel:
        await channel.send(planner.plan({0: 5}))
        with raises(KvPoolError, "no KV pool is attached"):
            await read(channel)


async def test_many_plans_ahead_are_held_back_and_answered_in_order(served: Served) -> None:
    await served.attach()
    planner = StepPlanner()
    slots = [planner.add(prompt_of(3, seed)) for seed in range(40)]
    plans = [planner.plan({slot: 3}) for slot in slots]
    async with served.steps() as channel:

        async def send_all() -> None:
            for plan in plans:
                await channel.send(plan)

        sending = asyncio.create_task(send_all())
        assert [(await read(channel)).step for _ in plans] == list(range(1, 41))
        await sending


async def test_a_stream_without_more_plans_ends_well(served: Served) -> None:
    """The half-close of gRPC, which our own channels do not use."""
    await served.attach()
    planner = StepPlanner()
    planner.add(prompt_of(5))
    call = served.stub.RunSteps()
    await call.write(executor_pb2.StepRequest(plan=planner.plan({0: 5})))
    await call.done_writing()
    assert [result.step async for result in call] == [1]


async def test_a_malformed_column_does_not_crash_the_process(served: Served) -> None:
    await served.attach()
    planner = StepPlanner()
    planner.add(prompt_of(5))
    plan = planner.plan({0: 5})
    plan.finished_slots = pack_u32([0]) + b"\1"
    async with served.steps() as channel:
        await channel.send(plan)
        with raises(QuireError, "step 1 failed: ValueError"):
            await read(channel)
    assert (await served.stub.Describe(executor_pb2.DescribeExecutorRequest())).vocab_size == 320


async def test_progress_counts_plans_layers_and_results(served: Served) -> None:
    await served.attach()
    planner = StepPlanner()
    planner.add(prompt_of(5))
    async with served.steps() as channel:
        assert await channel.progress() == 0
        for num_steps in (1, 2):
            await channel.send(planner.plan({0: 5 if num_steps == 1 else 1}))
            await read(channel)
            async with asyncio.timeout(20):  # a result is counted once it is on its way
                while await channel.progress() != num_steps * (1 + 3 + 1):
                    await asyncio.sleep(0.01)
            asked = await served.stub.GetProgress(executor_pb2.GetProgressRequest())
            assert asked.progress == await channel.progress()


async def test_the_next_scheduler_is_served_once_the_step_in_flight_has_ended(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same pool again, after its scheduler died: when the call returns, nobody writes blocks for the old one."""
    computing, go_on, launch = threading.Event(), threading.Event(), served.runner.launch

    def slow(plan: executor_pb2.StepPlan, *args: Any) -> PendingStep:
        computing.set()
        assert go_on.wait(60)
        return launch(plan, *args)

    monkeypatch.setattr(served.runner, "launch", slow)
    old_planner, planner = StepPlanner(), StepPlanner()
    old_planner.add(prompt_of(5))
    planner.add(prompt_of(9))
    with served.new_pool() as request:
        await served.stub.AttachKvPool(request)
        await _attach_under_a_step(served, request, old_planner, computing, go_on)
    async with served.steps() as channel:
        await channel.send(planner.plan({0: 9}))
        assert len(unpack_u32((await read(channel)).token_ids)) == 1


async def _attach_under_a_step(
    served: Served,
    request: executor_pb2.AttachKvPoolRequest,
    old_planner: StepPlanner,
    computing: threading.Event,
    go_on: threading.Event,
) -> None:
    async with served.steps() as old:
        await old.send(old_planner.plan({0: 5}))
        assert await asyncio.to_thread(computing.wait, 60)
        attaching = asyncio.ensure_future(served.stub.AttachKvPool(request))
        await asyncio.sleep(0.1)
        assert not attaching.done()
        go_on.set()
        await asyncio.wait_for(attaching, 60)
