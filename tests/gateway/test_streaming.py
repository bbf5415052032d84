"""Clients that leave, and errors after the first byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from support.fake_scheduler import FakeScheduler, Pause, running
from support.gateway_fixtures import MODEL, Gateway, sse_events, start_gateway

from quire.internal.v1 import scheduler_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLIENT_CANCELLED = scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED
COMPLETION = {"model": MODEL, "prompt": "hello", "max_tokens": 50}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 50}
BOTH = [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)]


def stall(scheduler: FakeScheduler) -> asyncio.Event:
    """Sequences get three tokens, and the rest when this event is set."""
    go_on = asyncio.Event()
    scheduler.script = lambda request, index: [70, 71, 72, Pause(go_on), *[73] * 100]
    return go_on


@pytest.fixture
def stalled(scheduler: FakeScheduler) -> asyncio.Event:
    """The module's scheduler stalls."""
    return stall(scheduler)


async def leave(
    http: httpx.AsyncClient, scheduler: FakeScheduler, path: str, body: dict[str, Any], count: int = 1
) -> None:
    """Sends a request, and closes its connection once the scheduler has all its prompts."""
    reading = asyncio.create_task(http.post(path, json=body))
    await scheduler.wait_requests(count)
    await asyncio.sleep(0.05)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def check_aborted(scheduler: FakeScheduler, count: int = 1) -> None:
    aborts = await scheduler.wait_aborts(count)
    assert [abort.reason for abort in aborts] == [CLIENT_CANCELLED] * count
    keys = [request.message.request_key for request in scheduler.requests]
    assert sorted(abort.request_key for abort in aborts) == keys
    assert all(not abort.sequence_indices for abort in aborts)


@pytest.mark.parametrize(("path", "body"), BOTH)
@pytest.mark.usefixtures("stalled")
async def test_a_client_that_leaves_a_stream(
    http: httpx.AsyncClient, scheduler: FakeScheduler, path: str, body: dict[str, Any]
) -> None:
    async with http.stream("POST", path, json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            assert "data: {" in line
            break
    await check_aborted(scheduler)


@pytest.mark.parametrize(("path", "body"), BOTH)
@pytest.mark.usefixtures("stalled")
async def test_a_client_that_leaves_before_the_whole_answer(
    http: httpx.AsyncClient, scheduler: FakeScheduler, path: str, body: dict[str, Any]
) -> None:
    await leave(http, scheduler, path, body)
    await check_aborted(scheduler)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.usefixtures("stalled")
async def test_every_prompt_of_a_client_that_leaves(
    http: httpx.AsyncClient, scheduler: FakeScheduler, stream: bool
) -> None:
    body = {**COMPLETION, "prompt": ["a", "b", "c"], "n": 2, "stream": stream}
    await leave(http, scheduler, "/v1/completions", body, count=3)
    await check_aborted(scheduler, 3)


async def test_a_client_that_leaves_during_the_submit(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    scheduler.submit_delay = 5.0
    await leave(http, scheduler, "/v1/completions", {**COMPLETION, "stream": True})
    await check_aborted(scheduler)


async def test_a_client_that_stays_is_not_aborted(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    for stream in (False, True):
        await http.post("/v1/completions", json={**COMPLETION, "stream": stream})
    await asyncio.sleep(0.05)
    assert scheduler.aborts == []


@pytest_asyncio.fixture(loop_scope="module")
async def breakable(tmp_path: Path, model_folder: Path) -> AsyncIterator[tuple[Gateway, FakeScheduler]]:
    """A gateway whose scheduler the test may break; requests stall."""
    async with running(FakeScheduler(tmp_path / "s.sock")) as scheduler:
        stall(scheduler)
        gateway = await start_gateway(scheduler, model_folder)
        yield gateway, scheduler
        await gateway.close()


async def test_a_lost_scheduler_interrupts_streams(breakable: tuple[Gateway, FakeScheduler]) -> None:
    gateway, scheduler = breakable
    scheduler.reset_script()
    body = {**COMPLETION, "max_tokens": 20, "seed": 1}
    async with httpx.AsyncClient(base_url=gateway.url) as http:

        async def answers() -> tuple[str, list[Any]]:
            """A stream's text and a whole answer's choices."""
            streamed = asyncio.create_task(http.post("/v1/completions", json={**body, "stream": True}))
            whole = await http.post("/v1/completions", json=body)
            *chunks, done = sse_events((await streamed).text)
            assert done == "[DONE]"
            return "".join(chunk["choices"][0]["text"] for chunk in chunks), whole.json()["choices"]

        undisturbed = await answers()
        scheduler.crash_after = 12
        assert await answers() == undisturbed
        assert scheduler.crash_after is None


async def test_a_scheduler_that_stays_away_ends_streams_with_an_error_event(
    breakable: tuple[Gateway, FakeScheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quire.gateway.connection.OUTAGE_LIMIT_S", 0.1)
    gateway, scheduler = breakable
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        streamed = asyncio.create_task(http.post("/v1/completions", json={**COMPLETION, "stream": True}))
        whole = asyncio.create_task(http.post("/v1/completions", json=COMPLETION))
        await scheduler.wait_requests(2)
        await asyncio.sleep(0.1)
        await scheduler.crash()
        answer = await streamed
        assert answer.status_code == 200
        *chunks, error = sse_events(answer.text)
        assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks)
        assert error["error"]["code"] == "service_unavailable"
        assert "has not come back" in error["error"]["message"]
        assert (await whole).status_code == 503


async def test_the_official_client_raises_an_error_event(
    breakable: tuple[Gateway, FakeScheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quire.gateway.connection.OUTAGE_LIMIT_S", 0.1)
    gateway, scheduler = breakable
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="-", max_retries=0) as client:
        stream = await client.completions.create(model=MODEL, prompt="x", stream=True, max_tokens=50)
        await anext(aiter(stream))
        await scheduler.crash()
        with pytest.raises(openai.APIError) as caught:
            async for _ in stream:
                pass
        assert caught.value.code == "service_unavailable"


@pytest.mark.usefixtures("stalled")
async def test_skipped_tokens_end_the_request_with_an_error(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    reading = asyncio.create_task(http.post("/v1/completions", json={**COMPLETION, "stream": True}))
    (request,) = await scheduler.wait_requests()
    await asyncio.sleep(0.05)
    scheduler.send(scheduler.tokens_message(request.message.request_key, position=9))
    *_, error = sse_events((await reading).text)
    assert error["error"]["type"] == "server_error"
    assert json.dumps(error).count("skipped tokens 3 to 8") == 1
    await check_aborted(scheduler)
