"""The load generator's loop, against a backend that holds requests until it is told."""

from __future__ import annotations

import asyncio
import time

import pytest

from quire.bench.load import run_load
from quire.bench.prompts import BenchRequest
from quire.bench.timeline import Timeline

REQUESTS = [BenchRequest([i], 1) for i in range(12)]


class HoldingBackend:
    """Answers a request after a number of turns of the loop, and counts those in flight."""

    def __init__(self, turns: int = 3) -> None:
        self.turns = turns
        self.in_flight = self.most_in_flight = 0
        self.order: list[int] = []

    async def list_models(self) -> list[str]:
        return ["m"]

    async def close(self) -> None:
        pass

    async def send(self, request: BenchRequest) -> Timeline:
        self.order.append(request.prompt[0])
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        for _ in range(self.turns):
            await asyncio.sleep(0)
        self.in_flight -= 1
        return Timeline(0.0, len(request.prompt), [1.0], request.prompt[0], ended=1.0)


@pytest.mark.parametrize(("limit", "most"), [(None, 12), (5, 5), (1, 1)])
async def test_a_closed_loop_fills_its_limit_and_no_more(limit, most):
    backend, done = HoldingBackend(), []
    timelines = await run_load(backend, REQUESTS, [0.0] * 12, limit, 10.0, done.append)
    assert backend.most_in_flight == most
    assert backend.order == list(range(12))
    assert [timeline.output_len for timeline in timelines] == list(range(12))
    assert len(done) == 12


async def test_an_open_loop_sends_no_request_before_its_time():
    sent: list[float] = []

    class Noting(HoldingBackend):
        async def send(self, request: BenchRequest) -> Timeline:
            sent.append(time.perf_counter())
            return await super().send(request)

    arrivals = [0.0, 0.05, 0.05, 0.1]
    started = time.perf_counter()
    await run_load(Noting(), REQUESTS[:4], arrivals, None, 10.0, lambda _: None)
    assert all(at - started >= arrival for at, arrival in zip(sent, arrivals, strict=True))


async def test_a_request_that_hangs_fails_alone():
    class Hanging(HoldingBackend):
        async def send(self, request: BenchRequest) -> Timeline:
            if request.prompt == [1]:
                await asyncio.Event().wait()
            return await super().send(request)

    timelines = await run_load(Hanging(), REQUESTS[:3], [0.0] * 3, None, 0.2, lambda _: None)
    assert [timeline.succeeded for timeline in timelines] == [True, False, True]
    assert "0.2 s" in timelines[1].error
