"""What onlookers get from a gateway: states and KV events, over restarts of the scheduler, and who may see them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.fake_scheduler import FakeScheduler
from support.gateway_fixtures import MODEL, Gateway, start_gateway

from quire.client import AsyncClient
from quire.errors import InvalidRequestError, PermissionDeniedError, ServiceUnavailableError
from quire.v1 import monitor_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATIENCE_S = 60


@contextlib.asynccontextmanager
async def watching(http: httpx.AsyncClient, query: str = "", **kwargs: Any) -> AsyncIterator[AsyncIterator[str]]:
    """The lines of the stream that are not empty."""
    async with asyncio.timeout(PATIENCE_S), http.stream("GET", f"/monitor/state{query}", **kwargs) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield (line async for line in answer.aiter_lines() if line)


async def next_state(lines: AsyncIterator[str]) -> dict[str, Any]:
    while (line := await anext(lines)).startswith(":"):
        pass
    state: dict[str, Any] = json.loads(line.removeprefix("data: "))
    return state


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_states_are_json_with_the_names_of_the_proto(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    async with watching(http, "?interval=0.25&blocks=true") as lines:
        state = await next_state(lines)
    assert state["loads"]["model"] == MODEL
    assert state["loads"]["kv_cache_usage"] == 0.25
    assert state["loads"]["num_requests_waiting"] == 0
    assert state["scheduler_start_ns"] == scheduler.monitor.start_ns
    (sequence,) = state["sequences"]
    assert (sequence["request_id"], sequence["block_ids"]) == ("one", [3, 1])
    assert state["blocks"]["is_complete"] is True
    assert base64.b64decode(state["blocks"]["states"]) == bytes([0, 1, 255])
    asked = scheduler.monitor.watch_requests[-1]
    assert (asked.interval_s, asked.with_blocks) == (0.25, True)


async def test_without_blocks_there_is_no_map(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    async with watching(http) as lines:
        assert "blocks" not in await next_state(lines)
    asked = scheduler.monitor.watch_requests[-1]
    assert (asked.interval_s, asked.with_blocks) == (0.5, False)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("interval=often", "interval"),
        ("interval=0", "interval"),
        ("interval=0.05", "interval"),
        ("interval=-1", "interval"),
        ("interval=nan", "interval"),
        ("interval=inf", "interval"),
        ("blocks=some", "blocks"),
    ],
)
async def test_values_that_cannot_be_are_refused(http: httpx.AsyncClient, query: str, field: str) -> None:
    answer = await http.get(f"/monitor/state?{query}")
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == field
    assert field in error["message"]


async def test_head_has_an_end(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    answer = await http.head("/monitor/state", timeout=PATIENCE_S)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"].startswith("text/event-stream")


async def test_grpc(gateway: Gateway, scheduler: FakeScheduler) -> None:
    async with AsyncClient(gateway.grpc_address) as client:
        loads = await client.loads()
        assert (loads.model, loads.num_requests_running) == (MODEL, 2)
        async with contextlib.aclosing(client.watch(interval=0.2, with_blocks=True)) as states:
            assert (await anext(states)).blocks.is_complete
        with pytest.raises(InvalidRequestError, match="interval_s"):
            await anext(client.watch(interval=0.01))
        async with contextlib.aclosing(client.kv_events(source="fake", after_id=7)) as batches:
            assert [(await anext(batches)).events[0].id for _ in range(2)] == [8, 9]


async def test_a_stream_goes_on_with_the_next_scheduler(
    http: httpx.AsyncClient, gateway: Gateway, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quire.gateway.monitor_routes._KEEP_ALIVE_S", 0.05)
    async with AsyncClient(gateway.grpc_address) as client, watching(http) as lines:
        batches = client.kv_events()
        ids = [(await anext(batches)).events[0].id]
        before = (await next_state(lines))["scheduler_start_ns"]
        await scheduler.crash()
        while not (await anext(lines)).startswith(":"):  # what had come
            pass
        await scheduler.start()
        while (after := (await next_state(lines))["scheduler_start_ns"]) == before:
            pass
        assert after == before + 1
        while not (last := scheduler.monitor.kv_requests[-1]).source:
            ids.append((await anext(batches)).events[0].id)
        assert last.source == "fake"
        while ids[-1] < last.after_id + 3:
            ids.append((await anext(batches)).events[0].id)
        assert ids == list(range(1, len(ids) + 1)), "nothing is lost and nothing comes twice"
        await batches.aclose()


async def test_a_stream_ends_when_its_client_leaves(
    http: httpx.AsyncClient, gateway: Gateway, scheduler: FakeScheduler
) -> None:
    await until(lambda: scheduler.monitor.num_streams == 0)
    async with AsyncClient(gateway.grpc_address) as client, watching(http) as lines:
        states = client.watch()
        await anext(states)
        await next_state(lines)
        assert scheduler.monitor.num_streams == 2
        await states.aclose()
        await until(lambda: scheduler.monitor.num_streams == 1)
    await until(lambda: scheduler.monitor.num_streams == 0)


@pytest.mark.parametrize("is_silent", [False, True])
async def test_streams_end_with_the_server(scheduler: FakeScheduler, model_folder: Path, is_silent: bool) -> None:
    """At once, not when the time for what runs is up."""
    gateway = await start_gateway(scheduler, model_folder, shutdown_timeout=3600)
    http = httpx.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S)
    async with http, AsyncClient(gateway.grpc_address) as client, watching(http) as lines:
        states, batches = client.watch(), client.kv_events()
        for stream in (states, batches):
            await anext(stream)
        await next_state(lines)
        if is_silent:
            scheduler.monitor.speaks.clear()
        await gateway.close()
        async for line in lines:
            assert line.startswith("data: {"), "the stream ends, and says nothing of an error"
        for stream in (states, batches):
            with pytest.raises(ServiceUnavailableError, match="shutting down"):
                async for _ in stream:
                    pass
    scheduler.monitor.speaks.set()


async def test_only_operators_may_look(scheduler: FakeScheduler, model_folder: Path, tmp_path: Path) -> None:
    entries = [
        {"sha256": hashlib.sha256(b"user").hexdigest(), "tenant": "user"},
        {"sha256": hashlib.sha256(b"operator").hexdigest(), "tenant": "operator", "operator": True},
    ]
    path = tmp_path / "keys.yaml"
    path.write_text(json.dumps(entries))
    gateway = await start_gateway(scheduler, model_folder, api_keys=str(path))
    try:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
            assert (await http.get("/monitor/state")).status_code == 401
            answer = await http.get("/monitor/state", headers={"Authorization": "Bearer user"})
            assert answer.status_code == 403
            assert answer.json()["error"]["code"] == "permission_denied"
            async with watching(http, headers={"Authorization": "Bearer operator"}) as lines:
                assert await next_state(lines)
        async with AsyncClient(gateway.grpc_address, api_key="user") as user:
            for call in (user.loads(), anext(user.watch()), anext(user.kv_events())):
                with pytest.raises(PermissionDeniedError, match="operator: true"):
                    await call
        async with AsyncClient(gateway.grpc_address, api_key="operator") as operator:
            assert isinstance(await operator.loads(), monitor_pb2.Loads)
        async with AsyncClient(gateway.grpc_address) as nobody:
            with pytest.raises(Exception, match="no API key"):
                await nobody.loads()
    finally:
        await gateway.close()
