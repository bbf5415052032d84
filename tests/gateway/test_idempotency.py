from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from quire.errors import DuplicateRequestError, InvalidRequestError, QuireError
from quire.gateway.generation import Generation
from quire.gateway.idempotency import RunRegistry, run_once
from quire.internal.v1 import scheduler_pb2
from quire.outputs import CompletionDelta, GenerationDelta, Usage

CANCELLED = scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED


class FakeGeneration:
    """Deltas come from a queue; None ends them."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[GenerationDelta | None] = asyncio.Queue()
        self.closed: list[Any] = []

    def say(self, text: str, usage: Usage | None = None) -> None:
        self.queue.put_nowait(GenerationDelta([CompletionDelta(0, text)], usage))
        if usage is not None:
            self.queue.put_nowait(None)

    def __aiter__(self) -> AsyncIterator[GenerationDelta]:
        return self

    async def __anext__(self) -> GenerationDelta:
        delta = await self.queue.get()
        if delta is None:
            raise StopAsyncIteration
        return delta

    def close(self, reason: Any) -> None:
        self.closed.append(reason)


class Starter:
    """Counts how often a run is begun."""

    def __init__(self) -> None:
        self.generations: list[FakeGeneration] = []
        self.error: Exception | None = None
        self.started = asyncio.Semaphore(0)

    async def __call__(self) -> Generation:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        self.generations.append(FakeGeneration())
        self.started.release()
        return cast(Generation, self.generations[-1])


async def texts(registry: RunRegistry, start: Starter, content: bytes = b"a") -> list[str]:
    deltas = registry.follow("id", content, start, lambda: CANCELLED)
    async with contextlib.aclosing(deltas):
        return [part.text async for delta in deltas for part in delta.deltas]


async def running(start: Starter) -> FakeGeneration:
    """The next run to be begun."""
    await start.started.acquire()
    return start.generations[-1]


async def test_all_followers_get_all_of_one_run() -> None:
    registry, start = RunRegistry(), Starter()
    early = [asyncio.create_task(texts(registry, start)) for _ in range(2)]
    generation = await running(start)
    generation.say("a")
    await asyncio.sleep(0.01)
    late = asyncio.create_task(texts(registry, start))
    await asyncio.sleep(0)
    generation.say("b", Usage(1, 2, 0))
    assert [await task for task in (*early, late)] == [["a", "b"]] * 3
    assert await texts(registry, start) == ["ab"]
    assert len(start.generations) == 1


async def test_other_content_under_the_same_id() -> None:
    registry, start = RunRegistry(), Starter()
    following = asyncio.create_task(texts(registry, start))
    generation = await running(start)
    with pytest.raises(DuplicateRequestError):
        await texts(registry, start, b"b")
    generation.say("a", Usage(1, 1, 0))
    await following
    with pytest.raises(DuplicateRequestError):
        await texts(registry, start, b"b")


async def test_the_last_to_leave_aborts_and_the_id_is_free_again() -> None:
    registry, start = RunRegistry(), Starter()
    followers = [asyncio.create_task(texts(registry, start)) for _ in range(2)]
    generation = await running(start)
    followers[0].cancel()
    await asyncio.sleep(0.01)
    assert generation.closed == []
    followers[1].cancel()
    await asyncio.sleep(0.01)
    assert generation.closed == [CANCELLED]
    again = asyncio.create_task(texts(registry, start, b"b"))
    (await running(start)).say("x", Usage(1, 1, 0))
    assert await again == ["x"]


async def test_a_failed_run_can_be_tried_again() -> None:
    registry, start = RunRegistry(), Starter()
    start.error = InvalidRequestError("no")
    for _ in range(2):
        with pytest.raises(InvalidRequestError):
            await texts(registry, start)
    start.error = RuntimeError("a defect")
    with pytest.raises(QuireError, match="internal error"):
        await texts(registry, start)
    start.error = None
    again = asyncio.create_task(texts(registry, start))
    (await running(start)).say("x", Usage(1, 1, 0))
    assert await again == ["x"]


@pytest.mark.parametrize("forgetful", [{"keep_s": 0.0}, {"capacity": 0}])
async def test_finished_runs_are_forgotten(forgetful: dict[str, Any]) -> None:
    registry, start = RunRegistry(**forgetful), Starter()
    for _ in range(2):
        following = asyncio.create_task(texts(registry, start))
        (await running(start)).say("x", Usage(1, 1, 0))
        await following
        await asyncio.sleep(0.001)
    assert len(start.generations) == 2


async def test_a_run_that_nobody_can_name_ends_with_its_caller() -> None:
    start = Starter()
    deltas = run_once(start, lambda: CANCELLED)
    first = asyncio.create_task(anext(deltas))
    generation = await running(start)
    generation.say("x")
    assert (await first).deltas[0].text == "x"
    assert generation.closed == []
    await deltas.aclose()
    assert generation.closed == [CANCELLED]


async def test_a_defect_of_a_run_that_nobody_can_name_stays_inside() -> None:
    start = Starter()
    start.error = RuntimeError("a defect")
    with pytest.raises(QuireError, match="internal error"):
        await anext(run_once(start, lambda: CANCELLED))
