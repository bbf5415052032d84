"""The load: requests sent at their times, no more at once than allowed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from quire.bench.backends import BenchBackend
from quire.bench.prompts import BenchRequest
from quire.bench.timeline import Timeline


async def run_load(
    backend: BenchBackend,
    requests: Sequence[BenchRequest],
    arrivals: Sequence[float],
    max_concurrency: int | None,
    timeout_s: float,
    on_done: Callable[[Timeline], None],
) -> list[Timeline]:
    """Sends each request `arrivals` seconds after now; the timelines are in the requests' order.

    With all arrivals at 0 and a limit this is a closed loop: a request is sent when another has ended. With arrival
    times it is an open loop; a limit then delays requests, and their latency counts from when they are sent.
    """
    gate = asyncio.Semaphore(max_concurrency or len(requests))
    started = time.perf_counter()

    async def run(request: BenchRequest) -> Timeline:
        try:
            timeline = await _send(backend, request, timeout_s)
        finally:
            gate.release()
        on_done(timeline)
        return timeline

    async with asyncio.TaskGroup() as group:
        tasks = []
        for request, arrival in zip(requests, arrivals, strict=True):
            wait = started + arrival - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            # Taken here and not in the task: requests start in their order, and few tasks wait.
            await gate.acquire()
            tasks.append(group.create_task(run(request)))
    return [task.result() for task in tasks]


async def _send(backend: BenchBackend, request: BenchRequest, timeout_s: float) -> Timeline:
    sent = time.perf_counter()
    try:
        async with asyncio.timeout(timeout_s):
            return await backend.send(request)
    except TimeoutError:
        return Timeline(sent, len(request.prompt), error=f"no complete answer within {timeout_s:g} s")
