"""What waits for slow readers is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
import pytest_asyncio
from support.fake_scheduler import MAX_MODEL_LEN, FakeScheduler, Together

from quire.columns import pack_u32
from quire.gateway.flow_control import FlowControl, FlowLimits
from quire.gateway.request_stream import RequestStream
from quire.gateway.scheduler_client import SchedulerClient
from quire.internal.v1 import scheduler_pb2
from quire.v1 import generate_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMITS = FlowLimits(per_request=20, total=50, fair_share=5)


class Told:
    """A scheduler that notes what it is told, and answers when it is allowed to."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, bool]] = []
        self.may_answer = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        self.control = FlowControl(self.set_flow, self.spawn, LIMITS)

    async def set_flow(self, key: int, paused: bool) -> None:
        self.calls.append((key, paused))
        await self.may_answer.wait()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.add(asyncio.create_task(work))

    async def settled(self) -> list[tuple[int, bool]]:
        self.may_answer.set()
        await asyncio.gather(*self.tasks)
        return self.calls


async def test_a_reader_that_lags_pauses_its_request_until_it_comes() -> None:
    told = Told()
    lagging, other = told.control.new_reader(1), told.control.new_reader(2)
    lagging.add(20)
    other.add(1)
    assert not lagging.is_paused
    lagging.add(1)
    assert lagging.is_paused
    lagging.add(2)  # what was in flight
    assert told.control.waiting == 24
    await asyncio.sleep(0)
    lagging.take()
    assert told.control.waiting == 1
    assert await told.settled() == [(1, True), (1, False)]


async def test_calls_do_not_overtake_each_other() -> None:
    told = Told()
    reader = told.control.new_reader(1)
    for _ in range(3):
        reader.add(21)
        await asyncio.sleep(0)
        reader.take()
        await asyncio.sleep(0)
    assert told.calls == [(1, True)], "the next waits for the answer"
    assert (await told.settled())[-1] == (1, False)


async def test_many_readers_share_what_the_gateway_may_hold() -> None:
    told = Told()
    readers = [told.control.new_reader(key) for key in range(8)]
    for _ in range(20):
        for reader in readers:
            if not reader.is_paused:
                reader.add(1)
    assert told.control.waiting <= LIMITS.total + len(readers) * LIMITS.fair_share
    assert all(reader.is_paused for reader in readers)
    for reader in readers[:-1]:
        reader.forget()
    fresh = told.control.new_reader(9)
    fresh.add(LIMITS.fair_share + 1)
    assert not fresh.is_paused
    await told.settled()


@pytest_asyncio.fixture(loop_scope="module")
async def client(scheduler: FakeScheduler) -> AsyncIterator[SchedulerClient]:
    client = await SchedulerClient.connect(scheduler.address, timeout=5, flow_limits=LIMITS)
    yield client
    await client.close()


def submit_request(*, logprobs: int | None = None) -> scheduler_pb2.SubmitRequest:
    params = generate_pb2.SamplingParams(max_tokens=200, logprobs=logprobs)
    return scheduler_pb2.SubmitRequest(
        prompt_token_ids=pack_u32([1, 2]), sequences=[scheduler_pb2.SequenceState()], sampling_params=params
    )


async def read_all(stream: RequestStream) -> list[int]:
    token_ids: list[int] = []
    while True:
        part = (await stream.next_chunk()).of_sequence(0)
        token_ids += part.token_ids
        if part.end is not None:
            return token_ids
        await asyncio.sleep(0.001)


@pytest.mark.parametrize(("logprobs", "weight"), [(None, 1), (3, 5)])
async def test_a_slow_reader_gets_every_token(
    client: SchedulerClient, scheduler: FakeScheduler, logprobs: int | None, weight: int
) -> None:
    scheduler.step_delay = 0.002
    script = [index % 200 + 60 for index in range(MAX_MODEL_LEN)]
    scheduler.script = lambda request, index: [Together(script[at : at + 4]) for at in range(0, len(script), 4)]
    stream = await client.submit(submit_request(logprobs=logprobs))
    (submitted,) = await scheduler.wait_requests()
    async with asyncio.timeout(10):
        while submitted.may_run.is_set():
            await asyncio.sleep(0.01)
    fast = await client.submit(submit_request())
    assert await read_all(fast) == script[:200]
    assert client.flow.waiting == stream.flow.waiting
    assert LIMITS.per_request < stream.flow.waiting < 200 * weight
    assert await read_all(stream) == script[:200]
    assert submitted.num_pauses >= 1
    for finished in (fast, stream):
        client.release(finished)
    assert client.flow.waiting == 0


async def test_a_request_that_ends_while_it_is_paused_leaves_nothing(
    client: SchedulerClient, scheduler: FakeScheduler
) -> None:
    stream = await client.submit(submit_request())
    (submitted,) = await scheduler.wait_requests()
    async with asyncio.timeout(10):
        while submitted.may_run.is_set():
            await asyncio.sleep(0.01)
    client.abort(stream, scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED)
    await scheduler.wait_aborts()
    assert client.flow.waiting == 0
