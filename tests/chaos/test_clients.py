"""Clients that leave, wait too long or read too slowly, while others stream (cases 9 to 12)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
from collections.abc import Callable, Iterator

import grpc
import pytest
from support.chaos import disconnects
from support.chaos.baseline import Baseline
from support.chaos.measurements import record
from support.chaos.server import ChaosServer, chaos_server
from support.chaos.streams import Clients, answers, check_equal, running
from support.chaos.workload import STORY, mixed_workload
from support.servers import wait_for

from quire.v1 import generate_pb2

# More than two steps take in.
LONG_PROMPT = [7] * 1800
# In seconds: long enough for a first token on a slow machine.
DEADLINE_S = 4.0


@pytest.fixture(scope="module")
def server():
    # Executors are stopped here to hold requests in a state: nobody is to take that for a hang.
    with chaos_server("--watchdog-timeout", "600") as started:
        yield started


@pytest.fixture
def baseline(server, reference):
    asyncio.run(answers(server, mixed_workload(40)))
    taken = Baseline.take(server)
    yield taken
    taken.check(server)


@pytest.mark.parametrize("count", [pytest.param(60, marks=pytest.mark.chaos_sample), 1000])
def test_9_disconnects(server, baseline, reference, count):
    """Case 9: clients leave, streaming and not, over REST and gRPC, at random points of their requests.

    Passes if the streams of those that stay are whole and equal to an undisturbed run, and all blocks come back.
    """

    async def disturb() -> None:
        async with running(server, mixed_workload()) as staying, Clients(server) as clients:
            await disconnects.leave(clients, count, random.Random(9))
            check_equal(await staying.answers(), reference)

    asyncio.run(disturb())


def test_10_cancel_of_eight_continuations(server, baseline):
    """Case 10: a request of n = 8 is cancelled in prefill and in decode, by REST and by gRPC, 40 times.

    Passes if no block, sequence or descriptor of any continuation is left.
    """

    async def disturb() -> None:
        draw = random.Random(10)
        async with Clients(server) as clients:
            for i in range(40):
                leave = disconnects.rest_stream if i % 2 else disconnects.grpc_stream
                await leave(clients, pieces=draw.randrange(30), n=8)

    asyncio.run(disturb())


@contextlib.contextmanager
def stopped_executor(server: ChaosServer) -> Iterator[None]:
    pid = server.kill("executor 0", signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("state", ["queue", "prefill", "decode"])
def test_11_deadlines(server, baseline, state):
    """Case 11: a client's deadline passes while its request waits in the queue, is in prefill, or decodes.

    Passes if the client gets DEADLINE_EXCEEDED and the scheduler has forgotten the request though no step has ended
    since: the executor is stopped meanwhile, so the state is certain. The neighbour's output is whole.
    """
    asyncio.run({"queue": _late_in_queue, "prefill": _late_in_prefill, "decode": _late_in_decode}[state](server))


async def _late_in_queue(server: ChaosServer) -> None:
    async with Clients(server) as clients:
        neighbour = clients.stub.Generate(_request([8, 9, 10], 600), timeout=240)
        responses = aiter(neighbour)
        count = _num_tokens(await anext(responses))
        with stopped_executor(server):  # two steps of the neighbour are in flight, and no third is planned
            late = clients.stub.Generate(_request(LONG_PROMPT, 100), timeout=DEADLINE_S)
            await _until(server, lambda live: sorted(live) == [("running", True), ("waiting", False)])
            await _check_late(server, late, others=1)
        assert count + sum([_num_tokens(response) async for response in responses]) == 600


async def _late_in_prefill(server: ChaosServer) -> None:
    async with Clients(server) as clients:
        with stopped_executor(server):
            late = clients.stub.Generate(_request(LONG_PROMPT, 100), timeout=DEADLINE_S)
            await _until(server, lambda live: live == [("running", False)])
            await _check_late(server, late, others=0)


async def _late_in_decode(server: ChaosServer) -> None:
    async with Clients(server) as clients:
        late = clients.stub.Generate(_request([5, 6, 7], 1900), timeout=DEADLINE_S)
        await anext(aiter(late))
        with stopped_executor(server):
            await _until(server, lambda live: live == [("running", True)])
            await _check_late(server, late, others=0)


async def _until(server: ChaosServer, condition: Callable[[list[tuple[str, bool]]], bool]) -> None:
    """Waits for a condition on the live sequences: the state of each, and whether its prompt is computed."""

    def holds() -> bool:
        live = server.kv_state().sequences
        return condition(
            [(entry.status, 0 < entry.num_computed_tokens >= min(entry.num_tokens, 1800) - 3) for entry in live]
        )

    await asyncio.to_thread(wait_for, holds)


async def _check_late(server: ChaosServer, call: grpc.aio.UnaryStreamCall, others: int) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        async for _ in call:
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await _until(server, lambda live: len(live) == others)


def test_12_slow_readers(server, baseline, reference):
    """Case 12: four clients take 4 KiB a tenth of a second of streams that are made a hundred times as fast.

    Passes if the others' answers are whole and equal to an undisturbed run, and nothing is left of the slow ones.
    """

    async def others() -> float:
        async with running(server, mixed_workload()) as streams:
            check_equal(await streams.answers(), reference)
            return streams.pause_p99_s()

    async def disturb() -> float:
        readers = [asyncio.create_task(_read_slowly(server)) for _ in range(4)]
        try:
            # Each is paused, which gives back its blocks, as soon as its connection is full.
            await asyncio.to_thread(wait_for, lambda: _are_paused(server, len(readers)), 60)
            return await others()
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    undisturbed = asyncio.run(others())
    ratio = asyncio.run(disturb()) / undisturbed
    record(12, "others' pauses between pieces, 99 %, beside slow readers, against without", ratio, "ratio", "<= 1.1")


async def _read_slowly(server: ChaosServer) -> None:
    body = {"model": "quire-tiny", "prompt": STORY, "stream": True, "logprobs": 20, "n": 8, "max_tokens": 1500}
    content = json.dumps({**body, "seed": 12, "ignore_eos": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=4096)
    try:
        writer.write(head.encode() + content)
        while await reader.read(4096):
            await asyncio.sleep(0.1)
    finally:
        writer.close()


def _are_paused(server: ChaosServer, num_requests: int) -> bool:
    """Whether so many requests live, and none of them holds a block."""
    state = server.kv_state()
    return len({entry.request_id for entry in state.sequences}) == num_requests and state.held_blocks == 0


def _request(token_ids: list[int], max_tokens: int) -> generate_pb2.GenerateRequest:
    params = generate_pb2.SamplingParams(max_tokens=max_tokens, ignore_eos=True, seed=1)
    return generate_pb2.GenerateRequest(token_ids=generate_pb2.TokenIds(ids=token_ids), sampling_params=params)


def _num_tokens(response: generate_pb2.GenerateResponse) -> int:
    return sum(len(delta.token_ids) for delta in response.deltas)
