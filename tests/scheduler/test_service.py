"""What the service makes of gateways that come, go and come again; nothing is computed here."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from quire import rpc
from quire.columns import pack_u32
from quire.errors import DuplicateRequestError, UnreachedError
from quire.internal.v1 import executor_pb2, scheduler_pb2, scheduler_pb2_grpc
from quire.scheduler.admission import Admission
from quire.scheduler.kv_cache import KvCache
from quire.scheduler.metrics import MetricStore
from quire.scheduler.outputs import OutputRouter
from quire.scheduler.request_checks import SchedulerLimits
from quire.scheduler.scheduler import Scheduler
from quire.scheduler.service import SchedulerService
from quire.scheduler.step_loop import Work
from quire.v1 import generate_pb2

PATIENCE_S = 60


@dataclass
class Served:
    """A scheduler, and a stub to reach it by."""

    scheduler: Scheduler
    address: str
    stub: Any

    async def open_stream(self, gateway_id: str) -> Any:
        """An output stream that the service knows."""
        stream = self.stub.StreamOutputs(scheduler_pb2.StreamOutputsRequest(gateway_id=gateway_id))
        await stream.initial_metadata()
        return stream

    async def submit(self, gateway_id: str, key: int, attempt: int = 0, output: tuple[int, ...] = ()) -> None:
        request = scheduler_pb2.SubmitRequest(
            gateway_id=gateway_id,
            request_key=key,
            attempt=attempt,
            prompt_token_ids=pack_u32([1, 2, 3]),
            sequences=[scheduler_pb2.SequenceState(index=0, output_token_ids=pack_u32(output))],
            sampling_params=generate_pb2.SamplingParams(max_tokens=8),
        )
        with rpc.errors_from_status():
            await self.stub.Submit(request)

    @property
    def running(self) -> list[tuple[str, int, int]]:
        """(gateway, key, attempt)"""
        requests = self.scheduler.requests.values()
        return [(request.key.gateway_id, request.key.number, request.attempt) for request in requests]

    async def until_running(self, expected: list[tuple[str, int, int]]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.running != expected:
                await asyncio.sleep(0.01)


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    scheduler = Scheduler(KvCache(16, 4), SchedulerLimits(max_model_len=64, max_num_seqs=4, max_num_batched_tokens=16))
    executor = executor_pb2.ExecutorDescription()
    lane: Any = SimpleNamespace(description=executor)
    description = scheduler_pb2.DescribeResponse(executors=[executor])
    router, admission = OutputRouter(), Admission(scheduler, 8)
    service = SchedulerService(description, scheduler, admission, router, Work(), [lane], MetricStore(64))
    server = rpc.new_server()
    scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(service, server)
    address = f"unix:{tmp_path}/s.sock"
    rpc.bind(server, address)
    await server.start()
    async with rpc.open_channel(address) as channel:
        yield Served(scheduler, address, scheduler_pb2_grpc.SchedulerServiceStub(channel))
    await server.stop(None)
    scheduler.check_integrity()


async def test_a_newer_attempt_takes_the_place_of_an_older_one(served: Served) -> None:
    await served.open_stream("one")
    await served.submit("one", 1)
    await served.submit("one", 1, attempt=2, output=(7, 8))
    assert served.running == [("one", 1, 2)]
    (request,) = served.scheduler.requests.values()
    assert list(request.sequences[0].token_ids) == [1, 2, 3, 7, 8]
    for attempt in (0, 1, 2):
        with pytest.raises(DuplicateRequestError):
            await served.submit("one", 1, attempt=attempt)
    assert served.running == [("one", 1, 2)]


async def test_requests_end_with_their_gateways_stream(served: Served) -> None:
    stream, _ = await served.open_stream("one"), await served.open_stream("two")
    for gateway_id in ("one", "two"):
        await served.submit(gateway_id, 1)
    stream.cancel()
    await served.until_running([("two", 1, 0)])
    with pytest.raises(UnreachedError, match="no output stream"):
        await served.submit("one", 2)


async def test_a_new_stream_begins_with_nothing(served: Served) -> None:
    """Its gateway has lost the old one, be it that the scheduler has not noticed, and tells what it still wants."""
    old = await served.open_stream("one")
    for key in (1, 2):
        await served.submit("one", key)
    new = await served.open_stream("one")
    assert served.running == []
    await served.submit("one", 2, attempt=1)
    async with asyncio.timeout(PATIENCE_S):
        assert [message async for message in old] == []
    assert served.running == [("one", 2, 1)], "the end of the old stream ends nothing of the new one"
    new.cancel()
    await served.until_running([])


# A gateway with one request that runs until somebody ends it.
_GATEWAY = """
import asyncio, sys
from quire.columns import pack_u32
from quire.gateway.scheduler_client import SchedulerClient
from quire.internal.v1 import scheduler_pb2
from quire.v1 import generate_pb2

async def main():
    client = await SchedulerClient.connect(sys.argv[1], 60)
    await client.submit(scheduler_pb2.SubmitRequest(
        prompt_token_ids=pack_u32([1]), sequences=[scheduler_pb2.SequenceState()],
        sampling_params=generate_pb2.SamplingParams(max_tokens=8),
    ))
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
async def test_requests_end_with_their_gateway(served: Served, number: signal.Signals) -> None:
    """At once with one that dies. One that is stopped is noticed by its silence, and comes back when it goes on."""
    gateway = await asyncio.create_subprocess_exec(sys.executable, "-P", "-c", _GATEWAY, served.address)
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not served.running:
                assert gateway.returncode is None
                await asyncio.sleep(0.01)
        gateway.send_signal(number)
        await served.until_running([])
        if number == signal.SIGSTOP:
            gateway.send_signal(signal.SIGCONT)
            async with asyncio.timeout(PATIENCE_S):
                while not served.running:
                    await asyncio.sleep(0.01)
            ((_, _, attempt),) = served.running
            assert attempt == 1
    finally:
        if gateway.returncode is None:
            gateway.kill()
        await gateway.wait()
    await served.until_running([])
