"""Clients that leave in the middle."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from typing import Final

from support.chaos.streams import CLIENT_TIMEOUT_S, Clients
from support.chaos.workload import STORY

from quire.v1 import generate_pb2

# Those that are connected at the same time.
_AT_ONCE: Final = 24
# A stream that nobody reads to its end.
_MAX_TOKENS: Final = 1500


async def leave(clients: Clients, count: int, draw: random.Random) -> None:
    """So many come and leave: by thirds they stream over REST, wait for a whole answer, and stream over gRPC."""
    numbers = iter(range(count))
    beat = _Beat(clients)
    pulse = asyncio.create_task(beat.run())
    ways: list[Callable[..., Awaitable[None]]] = [rest_stream, beat.rest_whole, grpc_stream]

    async def come_and_go() -> None:
        for i in numbers:
            await ways[i % 3](clients, pieces=draw.choice([0, 1, 3, 20]), n=draw.choice([1, 1, 2, 4]))

    try:
        await asyncio.gather(*(come_and_go() for _ in range(_AT_ONCE)))
    finally:
        pulse.cancel()


async def rest_stream(clients: Clients, pieces: int, n: int) -> None:
    """Leaves after so many frames; with none, as soon as the status is there."""
    body = {"model": "quire-tiny", "prompt": STORY, "max_tokens": _MAX_TOKENS, "n": n, "ignore_eos": True}
    async with clients.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        assert response.status_code == 200
        lines = (line async for line in response.aiter_lines() if line)
        for _ in range(pieces):
            assert "error" not in await anext(lines)


async def grpc_stream(clients: Clients, pieces: int, n: int) -> None:
    """Cancels after so many messages; with none, at once."""
    params = generate_pb2.SamplingParams(max_tokens=_MAX_TOKENS, n=n, ignore_eos=True)
    call = clients.stub.Generate(
        generate_pb2.GenerateRequest(text=STORY, sampling_params=params),
        timeout=CLIENT_TIMEOUT_S,
        metadata=clients.metadata,
    )
    for _ in range(pieces):
        await call.read()
    call.cancel()


class _Beat:
    """A stream whose frames tell those that see none of their own how far the server has come."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._frames = 0
        self._moved = asyncio.Condition()

    async def run(self) -> None:
        for seed in itertools.count():
            params = generate_pb2.SamplingParams(max_tokens=_MAX_TOKENS, ignore_eos=True, seed=seed)
            call = self._clients.stub.Generate(
                generate_pb2.GenerateRequest(text=STORY, sampling_params=params), timeout=CLIENT_TIMEOUT_S
            )
            async for _ in call:
                self._frames += 1
                async with self._moved:
                    self._moved.notify_all()

    async def rest_whole(self, clients: Clients, pieces: int, n: int) -> None:
        """Leaves when the server has taken about so many steps."""
        body = {"model": "quire-tiny", "prompt": STORY, "max_tokens": _MAX_TOKENS, "n": n, "ignore_eos": True}
        request = asyncio.create_task(clients.http.post("/v1/completions", json=body))
        end = self._frames + pieces
        async with self._moved:
            await asyncio.wait_for(self._moved.wait_for(lambda: self._frames >= end), CLIENT_TIMEOUT_S)
        assert not request.done(), "it was answered before it could leave"
        request.cancel()
        await asyncio.wait((request,))
