"""What no client should send, while others stream (cases 16 to 18)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from support.chaos import bombs
from support.chaos.measurements import record
from support.chaos.numbers import grpc_requests, rest_bodies
from support.chaos.server import ChaosServer, chaos_server
from support.chaos.streams import Clients, answers, check_equal, running
from support.chaos.workload import mixed_workload

MIB = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[ChaosServer]:
    with chaos_server() as started:
        asyncio.run(answers(started, mixed_workload(40)))
        yield started


def test_16_numbers(server, baseline, reference):
    """Case 16: 0, −1, 2^31, 2^63, NaN, infinities and booleans in every numeric field of REST and gRPC.

    Passes if each is served or refused as the client's mistake (400 or 422; INVALID_ARGUMENT), never as the server's,
    and the others' answers are the undisturbed ones.
    """

    async def disturb() -> None:
        async with running(server, mixed_workload()) as staying, Clients(server) as clients:
            await asyncio.gather(_send_rest(server, clients), _send_grpc(clients))
            check_equal(await staying.answers(), reference)

    asyncio.run(disturb())


async def _send_rest(server: ChaosServer, clients: Clients) -> None:
    description = (await clients.http.get("/openapi.json")).json()
    bodies = list(rest_bodies(description))
    assert len(bodies) > 500
    statuses = set()
    for path, field, content in bodies:
        async with clients.http.stream(
            "POST", path, content=content, headers={"content-type": "application/json"}
        ) as response:
            statuses.add(response.status_code)
            assert response.status_code in (200, 400, 422), (path, field, content, await response.aread())
            # What is served is left at once: some ask for as many tokens as there may be.
    assert statuses >= {200, 400}


async def _send_grpc(clients: Clients) -> None:
    codes = set()
    for message in grpc_requests():
        call = clients.stub.Generate(message, timeout=60)
        try:
            await anext(aiter(call), None)
            codes.add(grpc.StatusCode.OK)
        except grpc.RpcError as error:
            codes.add(error.code())
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, (json_format.MessageToDict(message), error)
        finally:
            call.cancel()
    assert codes == {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}


def test_17_grammar_bombs(server, baseline, reference):
    """Case 17: regular expressions, grammars and schemas that explode, while others stream.

    Passes if each is refused with 400, served, or ended by a limit while it is generated (its own error: a grammar
    may grow with the output), and the others' answers are the undisturbed ones.
    """

    async def send(clients: Clients, bomb: dict[str, Any]) -> int:
        body = {"model": "quire-tiny", "prompt": "x", "max_tokens": 4, **bomb}
        response = await clients.http.post("/v1/completions", json=body)
        ended_by_limit = response.status_code == 500 and "structured output failed" in response.text
        assert ended_by_limit or response.status_code in (200, 400), response.text
        return response.status_code

    async def disturb() -> None:
        async with running(server, mixed_workload()) as staying, Clients(server) as clients:
            statuses = [await send(clients, bomb) for bomb in bombs.ALL]
            assert statuses.count(400) >= len(bombs.ALL) // 2
            check_equal(await staying.answers(), reference)

    asyncio.run(disturb())


def test_18_many_schemas(server, baseline):
    """Case 18: 10,000 distinct schemas.

    Passes if every output is what its schema asks for, and the second half of them takes no more memory than a bound
    (MiB per process): compiled grammars are remembered in a bounded number.
    """

    async def ask(clients: Clients, numbers: Iterator[int]) -> None:
        for i in numbers:
            schema = {"type": "object", "properties": {f"field{i}": {"const": i}}, "required": [f"field{i}"]}
            body = {"model": "quire-tiny", "prompt": "x", "max_tokens": 48, "temperature": 0}
            form = {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {**schema, "additionalProperties": False}},
            }
            response = await clients.http.post("/v1/completions", json={**body, "response_format": form})
            assert response.status_code == 200, response.text
            assert json.loads(response.json()["choices"][0]["text"]) == {f"field{i}": i}

    async def ask_all(first: int, end: int) -> None:
        numbers = iter(range(first, end))
        async with Clients(server) as clients:
            await asyncio.gather(*(ask(clients, numbers) for _ in range(32)))

    asyncio.run(ask_all(0, 5000))
    half = _resident(server)
    asyncio.run(ask_all(5000, 10_000))
    for title, size in _resident(server).items():
        record(18, f"memory of {title} after 10,000 schemas, over that after 5,000", (size - half[title]) / MIB, "MiB")
        assert size - half[title] < 32 * MIB, title


def _resident(server: ChaosServer) -> dict[str, int]:
    return {title: process.memory_info().rss for title, process in server.processes().items()}
