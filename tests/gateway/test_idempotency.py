from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from quire.errors import DuplicateRequestError, InvalidRequestError, QuireError
from quire.gateway.grpc_api.idempotency import RunRegistry, run_once
from quire.internal.v1 import scheduler_pb2
from quire.v1 import generate_pb2

CANCELLED = scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED


class FakeRun:
    """Responses come from a queue; None ends them."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[generate_pb2.GenerateResponse | None] = asyncio.Queue()
        self.num_taken = 0
        self.closed: list[Any] = []

    def say(self, text: str, *, last: bool = False) -> None:
        delta = generate_pb2.CompletionDelta(text=text, token_ids=[len(text)])
        self.queue.put_nowait(generate_pb2.GenerateResponse(deltas=[delta]))
        if last:
            self.queue.put_nowait(None)

    async def responses(self) -> AsyncGenerator[generate_pb2.GenerateResponse, None]:
        while (response := await self.queue.get()) is not None:
            self.num_taken += 1
            yield response

    def close(self, reason: Any) -> None:
        self.closed.append(reason)


class Starter:
    """Counts how often a run is begun."""

    def __init__(self) -> None:
        self.generations: list[FakeRun] = []
        self.error: Exception | None = None
        self.started = asyncio.Semaphore(0)

    async def __call__(self) -> FakeRun:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        self.generations.append(FakeRun())
        self.started.release()
        return self.generations[-1]


async def texts(registry: RunRegistry, start: Starter, content: bytes = b"a") -> list[str]:
    deltas = registry.follow("tenant", "id", content, start, lambda: CANCELLED)
    async with contextlib.aclosing(deltas):
        return [part.text async for delta in deltas for part in delta.deltas]


async def running(start: Starter) -> FakeRun:
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
    generation.say("b", last=True)
    assert [await task for task in (*early, late)] == [["a", "b"]] * 3
    assert await texts(registry, start) == ["ab"]
    assert len(start.generations) == 1


async def test_other_content_under_the_same_id() -> None:
    registry, start = RunRegistry(), Starter()
    following = asyncio.create_task(texts(registry, start))
    generation = await running(start)
    with pytest.raises(DuplicateRequestError):
        await texts(registry, start, b"b")
    generation.say("a", last=True)
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
    (await running(start)).say("x", last=True)
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
    (await running(start)).say("x", last=True)
    assert await again == ["x"]


@pytest.mark.parametrize("forgetful", [{"keep_s": 0.0}, {"capacity": 0}, {"max_bytes": 0}])
async def test_finished_runs_are_forgotten(forgetful: dict[str, Any]) -> None:
    registry, start = RunRegistry(**forgetful), Starter()
    for _ in range(2):
        following = asyncio.create_task(texts(registry, start))
        (await running(start)).say("x", last=True)
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


async def test_the_fastest_reader_sets_the_pace() -> None:
    registry, start = RunRegistry(), Starter()
    slow = registry.follow("tenant", "id", b"a", start, lambda: CANCELLED)
    first = asyncio.create_task(anext(slow))
    run = await running(start)
    for index in range(1000):
        run.say(f"{index} ", last=index == 999)
    taken = (await first).deltas[0].text
    for _ in range(100):
        await asyncio.sleep(0)
    assert run.num_taken <= 3, "nobody reads, so nothing is taken from the run"
    # A second reader is fast; the first one gets the same whenever it comes, in fewer pieces.
    whole = "".join(f"{index} " for index in range(1000))
    assert "".join(await texts(registry, start)) == whole
    pieces = [part.text async for response in slow for part in response.deltas]
    assert taken + "".join(pieces) == whole
    assert len(pieces) < 600
    assert await texts(registry, start) == [whole]


async def test_a_long_log_keeps_every_token_once() -> None:
    registry, start = RunRegistry(), Starter()
    following = asyncio.create_task(texts(registry, start))
    run = await running(start)
    for index in range(700):
        run.say("x", last=index == 699)
    assert await following == ["x"] * 700
    late = [response async for response in registry.follow("tenant", "id", b"a", start, lambda: CANCELLED)]
    assert [list(delta.token_ids) for response in late for delta in response.deltas] == [[1] * 700]
