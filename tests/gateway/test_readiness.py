"""Health is SERVING while requests get ahead, on REST as on gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from support.collected import PATIENCE_S, request
from support.fake_scheduler import FakeScheduler, Pause

from quire.gateway.readiness import Readiness
from quire.gateway.scheduler_client import SchedulerClient
from quire.internal.v1 import scheduler_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Seconds without any output, in these tests.
TIMEOUT_S = 0.4


@pytest_asyncio.fixture(loop_scope="module")
async def client(scheduler: FakeScheduler) -> AsyncIterator[SchedulerClient]:
    client = await SchedulerClient.connect(scheduler.address, timeout=PATIENCE_S)
    yield client
    await client.close()


class Watched:
    """What a client's readiness says, one change after the other."""

    def __init__(self, client: SchedulerClient, timeout: float = TIMEOUT_S) -> None:
        self.readiness = Readiness(client, timeout)
        self._changes = self.readiness.changes()

    async def next(self) -> str | None:
        """The reason after the next change."""
        async with asyncio.timeout(PATIENCE_S):
            is_ready = await anext(self._changes)
        assert is_ready == (self.readiness.reason is None)
        return self.readiness.reason


def live(count: int) -> scheduler_pb2.StepOutputs:
    state = scheduler_pb2.SchedulerState(num_executors=2, num_live_executors=count)
    return scheduler_pb2.StepOutputs(state=state)


def silence(message: scheduler_pb2.SubmitRequest, index: int) -> list[Any]:
    return [Pause(asyncio.Event())]


async def test_it_follows_the_connection(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    watched = Watched(client)
    assert await watched.next() is None
    await scheduler.crash()
    assert await watched.next() == "the scheduler is not connected"
    await scheduler.start()
    assert await watched.next() is None


async def test_it_follows_the_executors(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    watched = Watched(client)
    assert await watched.next() is None
    scheduler.send(live(0))
    assert await watched.next() == "no executor is running"
    scheduler.send(live(1))
    assert await watched.next() is None
    scheduler.send(live(0))
    assert await watched.next() == "no executor is running"
    await scheduler.restart()
    assert await watched.next() is None, "what it knew was of the old scheduler"


async def test_requests_that_stand_still_are_noticed(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    watched = Watched(client)
    assert await watched.next() is None
    scheduler.script = silence
    stream = await client.submit(request())
    assert await watched.next() == "requests are running, and nothing came of them for 0.4 s"
    scheduler.send(scheduler.tokens_message(stream.key, 0))
    assert await watched.next() is None
    assert "nothing came" in (await watched.next() or "")
    client.abort(stream, scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED)
    assert await watched.next() is None


@pytest.mark.parametrize("case", ["idle", "beam search", "paused"])
async def test_where_nothing_is_due_nothing_is_missed(
    client: SchedulerClient, scheduler: FakeScheduler, case: str
) -> None:
    watched = Watched(client)
    assert await watched.next() is None
    scheduler.script = silence
    if case != "idle":
        stream = await client.submit(request(use_beam_search=case == "beam search"))
        if case == "paused":
            stream.flow.add(client.flow.limits.per_request + 1)
    change = asyncio.create_task(watched.next())
    await asyncio.sleep(2 * TIMEOUT_S)
    assert not change.done()
    change.cancel()
