"""The same work for a long time, with clients that leave: memory must stay flat (case 29).

`make soak MINUTES=60` is the long run; `make test-chaos` does a short one.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time

import pytest
from support.chaos import disconnects
from support.chaos.baseline import Baseline
from support.chaos.measurements import record
from support.chaos.server import ChaosServer, chaos_server
from support.chaos.streams import Clients, answers, check_equal
from support.chaos.workload import mixed_workload

MIB = 1 << 20
MINUTES = float(os.environ.get("QUIRE_SOAK_MINUTES", "1"))
# The largest growth of a process from the first half to the second, in MiB. A leak of 1 KiB per request would be more
# in an hour, which has some 100,000 of them.
BOUND_MIB = 24.0


@pytest.mark.timeout(MINUTES * 60 * 4 + 600)
def test_29_soak(reference):
    """Case 29: mixed work without a pause, a fifth of it cancelled by its clients.

    Passes if all answers of those that stay are the undisturbed ones, the median resident memory of each process in
    the second half is at most `BOUND_MIB` above that of the first, and the baseline is back.
    """
    with chaos_server() as server:
        _work(server, random.Random(0), reference)  # warm-up
        _work(server, random.Random(1), reference)
        baseline = Baseline.take(server)
        samples: dict[str, list[int]] = {title: [] for title in server.processes()}
        end = time.monotonic() + 60 * MINUTES
        draw, rounds = random.Random(29), 0
        while time.monotonic() < end or rounds < 4:
            _work(server, draw, reference)
            rounds += 1
            for title, process in server.processes().items():
                samples[title].append(process.memory_info().rss)
        baseline.check(server)
    _check_flat(samples, rounds)


def _work(server: ChaosServer, draw: random.Random, reference: dict) -> None:
    """The mixed workload, and beside it requests that are cancelled, a fifth of all."""
    calls = mixed_workload()

    async def run() -> None:
        async with Clients(server) as clients:
            staying = asyncio.create_task(answers(server, calls))
            await disconnects.leave(clients, (len(calls) + 79) // 4, draw)
            check_equal(await staying, reference)

    asyncio.run(run())


def _check_flat(samples: dict[str, list[int]], rounds: int) -> None:
    print(f"\n{rounds} rounds; resident memory, median of each half in MiB:")
    grown = {}
    for title, sizes in samples.items():
        half = len(sizes) // 2
        first, second = statistics.median(sizes[:half]) / MIB, statistics.median(sizes[half:]) / MIB
        print(f"{title:12} {first:8.1f} {second:8.1f} {second - first:+8.1f}")
        record(
            29,
            f"memory of {title}, second half over first, {MINUTES:g} min",
            second - first,
            "MiB",
            f"{BOUND_MIB:g} MiB at most",
        )
        grown[title] = second - first
    assert max(grown.values()) <= BOUND_MIB, grown
