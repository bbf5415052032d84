"""What a gRPC connection may do, and that another stream goes on meanwhile.

gRPC's core bounds all of this itself; these tests hold it to that.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from support import http2
from support.bystander import streaming
from support.fake_scheduler import FakeScheduler
from support.gateway_fixtures import Gateway, start_gateway

from quire.client import AsyncClient
from quire.rpc import MAX_MESSAGE_BYTES
from quire.sampling_params import SamplingParams
from quire.v1 import generate_pb2, generate_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")

_WAIT_S = 60
_GENERATE = b"/quire.v1.GenerateService/Generate"


def _message() -> bytes:
    params = generate_pb2.SamplingParams(max_tokens=3)
    return generate_pb2.GenerateRequest(text="x", sampling_params=params).SerializeToString()


async def _until(connection: http2.Connection, wanted: Callable[[http2.Frame], bool]) -> http2.Frame | None:
    """The first such frame; None if the connection ends before."""
    async with asyncio.timeout(_WAIT_S):
        async for frame in connection.frames():
            if wanted(frame):
                return frame
    return None


async def test_a_ping_flood_is_answered_and_nothing_more(gateway: Gateway, scheduler: FakeScheduler) -> None:
    """Not told to go away: in gRPC's core that costs more than the pings (see rpc.py)."""
    async with streaming(gateway, scheduler) as bystander, http2.Connection.to(gateway.grpc_port) as connection:
        # None is read meanwhile.
        flood = asyncio.create_task(connection.send(http2.frame(http2.PING, 0, b"12345678") * 20_000))
        await bystander.gets_a_token()
        assert await _until(connection, lambda frame: frame.kind in (http2.PING, http2.GOAWAY))
        async with asyncio.timeout(_WAIT_S):
            await flood


async def test_rapid_reset(gateway: Gateway, scheduler: FakeScheduler) -> None:
    """CVE-2023-44487: calls that are cancelled as they are made get no further than gRPC's core."""
    async with streaming(gateway, scheduler) as bystander:
        message = _message()
        tasks = len(asyncio.all_tasks())
        async with http2.Connection.to(gateway.grpc_port) as connection:
            reading = asyncio.create_task(_until(connection, lambda frame: False))
            for stream in range(1, 10_000, 2):
                if not await connection.send(http2.call(stream, _GENERATE, message) + http2.reset(stream)):
                    break
                if stream == 4999:
                    await bystander.gets_a_token()
            reading.cancel()
            await asyncio.wait([reading])
        # Of what was let in, nothing runs on.
        async with asyncio.timeout(_WAIT_S):
            while len(asyncio.all_tasks()) > tasks:
                await asyncio.sleep(0.05)
        submitted = [request for request in scheduler.requests[1:] if not request.aborts]
        assert not submitted
    scheduler.script = lambda request, index: [70, 71, 72]
    async with AsyncClient(gateway.grpc_address) as client:
        output = await client.complete("x", SamplingParams(max_tokens=3), timeout=_WAIT_S)
    assert output.outputs[0].token_ids == [70, 71, 72]


async def test_streams_of_a_connection_are_bounded(gateway: Gateway) -> None:
    async with http2.Connection.to(gateway.grpc_port) as connection:
        frame = await _until(connection, lambda frame: frame.kind == http2.SETTINGS and not frame.flags)
        assert frame is not None
        settings = dict(struct.iter_unpack(">HI", frame.payload))
        assert settings[3] == 1024, "SETTINGS_MAX_CONCURRENT_STREAMS"
        assert settings[6] == 32 << 10, "SETTINGS_MAX_HEADER_LIST_SIZE"


async def test_large_metadata_is_refused(gateway: Gateway, scheduler: FakeScheduler) -> None:
    async with streaming(gateway, scheduler) as bystander:
        async with grpc.aio.insecure_channel(gateway.grpc_address) as channel:
            stub = generate_pb2_grpc.GenerateServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ListModels(
                    generate_pb2.ListModelsRequest(), metadata=[("x-large", "a" * (64 << 10))], timeout=_WAIT_S
                )
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await bystander.gets_a_token()


async def test_headers_without_end(gateway: Gateway, scheduler: FakeScheduler) -> None:
    """A flood of CONTINUATION frames: the connection ends, or drops what it gets."""
    async with streaming(gateway, scheduler) as bystander, http2.Connection.to(gateway.grpc_port) as connection:
        field = b"\0\1a\x7e" + b"b" * 126
        await connection.send(http2.frame(http2.HEADERS, 1, field))
        for _ in range(500):
            if not await connection.send(http2.frame(http2.CONTINUATION, 1, field * 100)):
                break
        await bystander.gets_a_token()


@pytest.mark.parametrize("size", [MAX_MESSAGE_BYTES + 1, (1 << 32) - 1])
async def test_large_messages_are_refused(gateway: Gateway, scheduler: FakeScheduler, size: int) -> None:
    """By the length that a message is said to have, before it is there."""
    async with streaming(gateway, scheduler) as bystander, http2.Connection.to(gateway.grpc_port) as connection:
        begin = http2.call(1, _GENERATE, b"")[: -(9 + 5)]
        await connection.send(begin + http2.frame(http2.DATA, 1, b"\0" + struct.pack(">I", size)))
        frame = await _until(connection, lambda frame: frame.kind == http2.HEADERS and frame.stream == 1)
        assert frame is not None
        # Trailers, in which the status is RESOURCE_EXHAUSTED.
        assert b"\x0bgrpc-status\x018" in frame.payload
        await bystander.gets_a_token()


async def test_no_frame_of_garbage_hurts(gateway: Gateway, scheduler: FakeScheduler) -> None:
    async with streaming(gateway, scheduler) as bystander:
        for garbage in (
            b"\xff" * 64,
            http2.frame(http2.DATA, 7, b"x"),
            http2.frame(http2.WINDOW_UPDATE, 0, b"\0\0\0\0"),
            http2.headers(2, (b":method", b"POST")),
        ):
            async with http2.Connection.to(gateway.grpc_port) as connection:
                await connection.send(garbage)
                with contextlib.suppress(ConnectionError):
                    await connection.send(garbage)
        await bystander.gets_a_token()


async def test_connections_are_counted(scheduler: FakeScheduler, model_folder: Path) -> None:
    gateway = await start_gateway(scheduler, model_folder, max_connections=4)

    def is_settings(frame: http2.Frame) -> bool:
        return frame.kind == http2.SETTINGS

    async with contextlib.AsyncExitStack() as stack:
        for _ in range(4):
            connection = await stack.enter_async_context(http2.Connection.to(gateway.grpc_port))
            assert await _until(connection, is_settings)
        async with http2.Connection.to(gateway.grpc_port) as refused:
            assert await _until(refused, is_settings) is None
    async with asyncio.timeout(_WAIT_S):
        is_served = None
        while is_served is None:
            async with http2.Connection.to(gateway.grpc_port) as connection:
                is_served = await _until(connection, is_settings)
    await gateway.close()
