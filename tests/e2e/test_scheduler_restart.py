"""The scheduler dies in the middle of streams: clients see a pause and then what they would have seen anyway."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.chaos.server import ChaosServer, chaos_server
from support.chaos.streams import answers, check_equal, running
from support.chaos.workload import mixed_workload
from support.servers import wait_for

pytestmark = pytest.mark.slow

_NAMES = [
    "greedy",
    "seeded",
    "n = 4",
    "penalties (whole)",
    "stop strings",
    "logprobs (whole)",
    "beam search (whole)",
    "prompt_logprobs (whole)",
    "best_of (whole)",
    "JSON schema",
]


@pytest.fixture(scope="module")
def server() -> Iterator[ChaosServer]:
    with chaos_server() as started:
        yield started


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_streams_go_on_with_the_very_same_answers(server: ChaosServer, number: signal.Signals) -> None:
    workload = mixed_workload(120)
    calls = {name: workload[name] for name in _NAMES}

    async def disturb() -> None:
        async with running(server, calls) as streams:
            await streams.until_each_has(3)
            assert streams.num_unfinished >= 8
            old = await asyncio.to_thread(server.kill, "scheduler", number)
            await asyncio.to_thread(server.wait_replaced, "scheduler", old)
            check_equal(await streams.answers(), undisturbed)

    undisturbed = asyncio.run(answers(server, calls))
    asyncio.run(disturb())
    wait_for(lambda: (state := server.kv_state()).held_blocks == 0 and not state.sequences)


def test_health_follows_the_scheduler(server: ChaosServer) -> None:
    state = health_pb2.HealthCheckResponse
    with grpc.insecure_channel(server.grpc_address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=240)
        assert next(watch).status == state.SERVING
        server.kill("scheduler")
        assert next(watch).status == state.NOT_SERVING
        assert next(watch).status == state.SERVING
        assert httpx.get(f"{server.url}/health", timeout=30, trust_env=False).status_code == 200
        watch.cancel()
