"""Abuse of HTTP/1.1, HTTP/2 and gRPC while others stream (cases 13 to 15)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import pytest
from support.chaos import abuse
from support.chaos.measurements import record
from support.chaos.server import ChaosServer, chaos_server
from support.chaos.streams import answers, check_equal, running
from support.chaos.workload import mixed_workload

from quire.v1 import generate_pb2, generate_pb2_grpc

MIB = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[ChaosServer]:
    with chaos_server() as started:
        asyncio.run(answers(started, mixed_workload(40)))
        yield started


def beside_streams(server: ChaosServer, reference: dict, *attacks: Callable[[], bytes]) -> list[bytes]:
    """Runs the attacks at once beside the mixed workload, whose answers must be the undisturbed ones."""

    async def disturb() -> list[bytes]:
        with ThreadPoolExecutor(len(attacks)) as pool:
            loop = asyncio.get_running_loop()
            async with running(server, mixed_workload()) as staying:
                results = [loop.run_in_executor(pool, attack) for attack in attacks]
                check_equal(await staying.answers(), reference)
                return await asyncio.gather(*results)

    return asyncio.run(disturb())


def test_13_slowloris(server, baseline, reference):
    """Case 13, first part: 100 connections whose headers never end, and 100 whose bodies never come.

    Passes if all of them are closed by the server, and the others' answers are the undisturbed ones.
    """
    attacks = [lambda: abuse.slow_head(server)] * 100 + [lambda: abuse.slow_body(server)] * 100
    for said in beside_streams(server, reference, *attacks):
        assert said == b"" or said.startswith(b"HTTP/1.1 408")


def test_13_sizes(server, baseline, reference):
    """Case 13, second part: a header of 64 MB, a body of more than 64 MiB, a body in a million chunks.

    Passes if the first two are refused, the third is answered in one way or the other, the gateway does not hold on
    to what it was sent, and the others' answers are the undisturbed ones.
    """
    gateway = server.find("gateway 0")
    before = gateway.memory_info().rss
    head, body, chunks = beside_streams(
        server,
        reference,
        lambda: abuse.large_head(server, 64_000_000),
        lambda: abuse.large_body(server, 65 * MIB),
        lambda: abuse.many_chunks(server, 1_000_000),
    )
    assert head == b"" or head.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431")), head[:100]
    assert body == b"" or body.startswith(b"HTTP/1.1 413"), body[:100]
    assert chunks.startswith((b"HTTP/1.1 200", b"HTTP/1.1 4")), chunks[:100]
    growth = gateway.memory_info().rss - before
    record(13, "memory of the gateway afterwards, over that before", growth / MIB, "MiB")
    assert growth < 100 * MIB


def test_14_http2_floods(server, baseline, reference):
    """Case 14: 4,000 streams that are reset at once, 10,000 pings.

    Passes if the connection is served or told to go away, and the others' answers are the undisturbed ones.
    """
    beside_streams(
        server, reference, lambda: abuse.rapid_reset(server, 4_000), lambda: abuse.ping_flood(server, 50_000)
    )


def test_15_oversize_messages(server, baseline, reference):
    """Case 15: messages over the limit of 64 MiB, and one that says it has 4 GiB.

    Passes if they are refused with RESOURCE_EXHAUSTED (8) and 413, and the others' answers are the undisturbed ones.
    """

    def large_message() -> bytes:
        options = [("grpc.max_send_message_length", -1)]
        request = generate_pb2.GenerateRequest(text="a" * (65 * MIB))
        with (
            grpc.insecure_channel(server.grpc_address, options=options) as channel,
            pytest.raises(grpc.RpcError) as caught,
        ):
            list(generate_pb2_grpc.GenerateServiceStub(channel).Generate(request, timeout=100))
        return str(caught.value.code()).encode()

    def large_json() -> bytes:
        content = b'{"prompt": "' + b"a" * (65 * MIB) + b'"}'
        try:
            response = httpx.post(f"{server.url}/v1/completions", content=content, timeout=100)
        except httpx.TransportError:  # closed while it was still being sent
            return b"413"
        return str(response.status_code).encode()

    code, status, lie = beside_streams(server, reference, large_message, large_json, lambda: abuse.lying_length(server))
    assert code == b"StatusCode.RESOURCE_EXHAUSTED"
    assert status == b"413"
    assert b"grpc-status" in lie
