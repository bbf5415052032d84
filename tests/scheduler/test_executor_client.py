"""The channels to an executor: which one is opened, and what they do when something is large, slow or ends."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.processes import open_descriptors
from support.step_server import OldStepService, StepService, serving

from quire.errors import DeadlineError, QuireError, RingError, ServiceUnavailableError, StartupError
from quire.internal.v1 import executor_pb2
from quire.scheduler.executor_client import ExecutorClient, GrpcStepChannel
from quire.scheduler.ring_channel import RingStepChannel


def _answer(plan: executor_pb2.StepPlan) -> executor_pb2.StepResult:
    """As many bytes as came."""
    return executor_pb2.StepResult(epoch=plan.epoch, step=plan.step, slots=plan.slots)


def _plan(step: int, size: int = 4) -> executor_pb2.StepPlan:
    return executor_pb2.StepPlan(step=step, slots=bytes([step]) * size)


@asynccontextmanager
async def _client(address: str) -> AsyncIterator[ExecutorClient]:
    client = ExecutorClient(0, address)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def _channel(client: ExecutorClient, transport: str = "ring") -> AsyncIterator[RingStepChannel]:
    channel = await client.open_steps(transport, 10)
    try:
        async with asyncio.timeout(60):
            yield channel
    finally:
        await channel.close()


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[StepService]:
    service = StepService(_answer)
    async with serving(service, f"unix:{tmp_path}/executor.sock"):
        yield service
    await asyncio.to_thread(service.worker.shutdown)


@pytest.fixture
async def client(service: StepService, tmp_path: Path) -> AsyncIterator[ExecutorClient]:
    async with _client(f"unix:{tmp_path}/executor.sock") as client:
        yield client


@pytest.mark.parametrize(
    ("transport", "kind"), [("auto", RingStepChannel), ("ring", RingStepChannel), ("grpc", GrpcStepChannel)]
)
async def test_what_is_opened_on_this_host(client, transport, kind):
    async with _channel(client, transport) as channel:
        assert type(channel) is kind
        await channel.send(_plan(1))
        assert (await channel.receive()).step == 1


async def test_another_host_gets_grpc():
    async with serving(StepService(_answer), "127.0.0.1:0") as address, _client(address) as client:
        async with _channel(client, "auto") as channel:
            assert type(channel) is GrpcStepChannel
            await channel.send(_plan(1))
            assert (await channel.receive()).step == 1
        with pytest.raises(StartupError, match=r"cannot share a ring.*unix:") as caught:
            await client.open_steps("ring", 10)
        assert caught.value.field == "step_transport"


async def test_an_executor_without_rings_gets_grpc(tmp_path):
    address = f"unix:{tmp_path}/executor.sock"
    async with serving(OldStepService(), address), _client(address) as client:
        async with _channel(client, "auto") as channel:
            assert type(channel) is GrpcStepChannel
        before = open_descriptors()
        with pytest.raises(QuireError, match="not implemented"):
            await client.open_steps("ring", 10)
        assert open_descriptors() == before


async def test_an_executor_that_does_not_see_our_sockets_gets_grpc(client, service, monkeypatch):
    """Another container may share the folder of its own socket and not that of our temporary files."""

    def attach(address: Path) -> None:
        raise RingError(f"no rings are handed over at {address}")

    monkeypatch.setattr("quire.executor.step_stream.StepRings.attach", attach)
    async with _channel(client, "auto") as channel:
        assert type(channel) is GrpcStepChannel
    with pytest.raises(RingError, match="no rings are handed over"):
        await client.open_steps("ring", 10)


async def test_an_executor_that_is_not_there_is_not_taken_for_an_old_one(tmp_path):
    async with _client(f"unix:{tmp_path}/nobody.sock") as client:
        with pytest.raises(ServiceUnavailableError, match="executor 0 cannot be reached"):
            await client.open_steps("auto", 10)


async def test_an_executor_that_does_not_take_the_rings_in_time(client, service):
    """And that would take them when nobody is there any more: neither side keeps anything."""
    with pytest.raises(QuireError, match="not implemented"):  # gRPC opens what it keeps
        await client.describe(10)
    free = threading.Event()
    service.worker.submit(free.wait, 30)
    before = open_descriptors()
    with pytest.raises(DeadlineError, match=r"executor 0 did not take its rings within 0\.2 seconds"):
        await client.open_steps("auto", 0.2)
    free.set()
    async with asyncio.timeout(10):
        while open_descriptors() != before:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("transport", ["ring", "grpc"])
async def test_plans_and_results_of_any_size(client, transport):
    """From empty to several times the ring, with two in flight in both directions."""
    sizes = [0, 1, 100, 1_000_000, 1 << 20, (1 << 20) + 1, 5_000_000, 2_000_000, 7]
    async with _channel(client, transport) as channel:
        await channel.send(_plan(0, sizes[0]))
        for step, size in enumerate(sizes):
            if step + 1 < len(sizes):
                await channel.send(_plan(step + 1, sizes[step + 1]))
            result = await channel.receive()
            assert (result.step, result.slots) == (step, bytes([step]) * size)


async def test_a_plan_that_waits_for_room_hears_of_the_failure_of_the_one_before(client, service):
    failing = threading.Event()

    def execute(plan: executor_pb2.StepPlan) -> executor_pb2.StepResult:
        failing.wait(30)
        raise ServiceUnavailableError("no more memory")

    service.execute = execute
    async with _channel(client) as channel:
        await channel.send(_plan(1))
        sending = asyncio.create_task(channel.send(_plan(2, 3 << 20)))
        await asyncio.sleep(0.05)
        assert not sending.done()
        failing.set()
        with pytest.raises(ServiceUnavailableError, match="no more memory"):
            await sending
        with pytest.raises(ServiceUnavailableError, match="no more memory"):
            await channel.send(_plan(3))


async def test_results_before_a_failure_are_delivered(client, service):
    def execute(plan: executor_pb2.StepPlan) -> executor_pb2.StepResult:
        if plan.step == 3:
            raise QuireError("the third")
        return _answer(plan)

    service.execute = execute
    async with _channel(client) as channel:
        for step in range(1, 4):
            await channel.send(_plan(step))
        async with asyncio.timeout(10):
            while channel._failure is None:
                await asyncio.sleep(0.01)
        assert [(await channel.receive()).step for _ in range(2)] == [1, 2]
        with pytest.raises(QuireError, match="the third"):
            await channel.receive()


async def test_an_executor_that_shuts_down_says_so_to_a_scheduler_that_waits(client, service):
    async with _channel(client) as channel:
        waiting = asyncio.create_task(channel.receive())
        await asyncio.sleep(0)
        service.streams[0].end(ServiceUnavailableError("the executor is shutting down"))
        with pytest.raises(ServiceUnavailableError, match="shutting down"):
            await waiting


async def test_an_executor_whose_result_waits_for_room_can_be_ended(client, service, monkeypatch):
    """Its scheduler hangs: nobody reads results. The worker's thread is free again all the same."""
    computed = threading.Event()

    def execute(plan: executor_pb2.StepPlan) -> executor_pb2.StepResult:
        computed.set()
        return executor_pb2.StepResult(step=plan.step, slots=bytes(3 << 20))

    service.execute = execute
    async with _channel(client) as channel:
        asyncio.get_running_loop().remove_reader(channel._results.written_fd)
        await channel.send(_plan(1))
        await asyncio.to_thread(computed.wait, 30)
        service.streams[0].end(ServiceUnavailableError("enough"))
        await asyncio.wait_for(asyncio.wrap_future(service.worker.submit(lambda: None)), 30)


async def test_damaged_messages_are_refused(client, service):
    async with _channel(client) as channel:
        channel._plans.send(b"\xff\xff\xff")
        with pytest.raises(RingError, match="a plan in the ring is damaged"):
            await channel.receive()
    async with _channel(client) as channel:
        channel._received.append(b"\xff\xff\xff")
        with pytest.raises(RingError, match="executor 0 sent a damaged result"):
            await channel.receive()


async def test_a_writer_that_breaks_the_protocol_ends_the_channel(client):
    async with _channel(client) as channel:
        os.eventfd_write(channel._results.written_fd, 1 << 40)
        with pytest.raises(RingError, match="more than there was room for"):
            await channel.receive()
