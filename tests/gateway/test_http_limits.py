"""What a REST connection may take, and that another stream goes on meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from support.bystander import streaming
from support.fake_scheduler import FakeScheduler
from support.gateway_fixtures import MODEL, Gateway, start_gateway

from quire.gateway import http_protocol

pytestmark = pytest.mark.asyncio(loop_scope="module")

_WAIT_S = 60
_POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def impatient(module_scheduler: FakeScheduler, model_folder: Path) -> AsyncIterator[Gateway]:
    """A gateway that waits for two seconds, in which a test that is slow can still send what it means to."""
    limits = {"header_timeout": 2.0, "body_timeout": 2.0, "max_connections": 8}
    gateway = await start_gateway(module_scheduler, model_folder, **limits)
    yield gateway
    await gateway.close()


class Raw:
    """A connection that sends what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, gateway: Gateway) -> AsyncIterator[Raw]:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()

    async def send(self, data: bytes) -> None:
        """As much of it as the server takes."""
        with contextlib.suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, object]]:
        """(status, body) of an answer with a length."""
        async with asyncio.timeout(_WAIT_S):
            head = await self._reader.readuntil(b"\r\n\r\n")
            lines = head.decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
            body = await self._reader.readexactly(int(headers["content-length"]))
        return int(lines[0].split()[1]), json.loads(body)

    async def is_closed(self) -> None:
        """The server ends the connection."""
        async with asyncio.timeout(_WAIT_S):
            with contextlib.suppress(ConnectionError):
                while await self._reader.read(65536):
                    pass


async def test_large_heads_are_refused(gateway: Gateway, scheduler: FakeScheduler) -> None:
    async with streaming(gateway, scheduler) as bystander:
        for head in (
            b"GET /health HTTP/1.1\r\nx-large: " + b"a" * (64 << 20),
            b"GET /" + b"a" * (70 << 10) + b" HTTP/1.1\r\n\r\n",
            b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
        ):
            async with Raw.to(gateway) as raw:
                sending = asyncio.create_task(raw.send(head))
                status, body = await raw.answer()
                assert status == 431
                assert body["error"]["code"] == "request_header_fields_too_large"  # type: ignore[index]
                await raw.is_closed()
                await sending
        await bystander.gets_a_token()


async def test_a_head_within_the_limit_is_served(gateway: Gateway) -> None:
    async with Raw.to(gateway) as raw:
        await raw.send(b"GET /health HTTP/1.1\r\nhost: x\r\nx-large: " + b"a" * 60_000 + b"\r\n\r\n")
        assert await raw.answer() == (200, {"status": "ok"})


async def test_what_is_not_http_is_refused(gateway: Gateway) -> None:
    async with Raw.to(gateway) as raw:
        await raw.send(b"\x16\x03\x01 hello\r\n\r\n")
        assert (await raw.answer())[0] == 400
        await raw.is_closed()


async def test_trailers_and_chunk_extensions_are_bounded(gateway: Gateway) -> None:
    for tail in (b"1;" + b"a" * (128 << 10), b"1\r\n{\r\n0\r\nx-trailer: " + b"a" * (128 << 10)):
        async with Raw.to(gateway) as raw:
            await raw.send(_POST + b"transfer-encoding: chunked\r\n\r\n" + tail)
            await raw.is_closed()


async def test_a_large_body_is_refused(gateway: Gateway, scheduler: FakeScheduler) -> None:
    async with streaming(gateway, scheduler) as bystander:
        async with Raw.to(gateway) as raw:
            await raw.send(_POST + b"content-length: %d\r\n\r\n" % (65 << 20))
            assert (await raw.answer())[0] == 413
        await bystander.gets_a_token()
        # One that does not say how long it is, and does not stop after the answer either.
        async with Raw.to(gateway) as raw:
            await raw.send(_POST + b"transfer-encoding: chunked\r\n\r\n")
            piece = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
            sending = asyncio.create_task(raw.send(piece * 140))
            assert (await raw.answer())[0] == 413
            await raw.is_closed()
            await sending


async def test_bodies_of_all_connections_are_bounded_and_small_ones_pass(
    gateway: Gateway, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "_MAX_BODIES_BYTES", 5 << 20)
    half = _POST + b"content-length: %d\r\n\r\n" % (8 << 20) + b" " * (4 << 20)
    async with streaming(gateway, scheduler), httpx.AsyncClient(base_url=gateway.url, timeout=_WAIT_S) as http:
        async with Raw.to(gateway) as one, Raw.to(gateway) as other:
            await asyncio.gather(one.send(half), other.send(half))
            answers = [asyncio.create_task(raw.answer()) for raw in (one, other)]
            (refused,), (waiting,) = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
            status, body = await refused
            assert status == 503
            assert body["error"]["code"] == "service_unavailable"  # type: ignore[index]
            # The other one holds 4 MiB now, which does not hinder small ones.
            assert (await http.post("/v1/completions", json={"model": "other"})).status_code == 400
            waiting.cancel()
        async with asyncio.timeout(_WAIT_S):
            while (await http.post("/tokenize", content=b'{"prompt": "%b"}' % (b"x" * (4 << 20)))).status_code == 503:
                await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_a_million_chunks(gateway: Gateway, scheduler: FakeScheduler) -> None:
    async with streaming(gateway, scheduler) as bystander, Raw.to(gateway) as raw:
        body = json.dumps({"model": MODEL, "prompt": "x", "max_tokens": 0}).encode()
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"1\r\n \r\n" * 1_000_000 + b"0\r\n\r\n"
        await raw.send(_POST + b"transfer-encoding: chunked\r\n\r\n" + chunks[: len(chunks) // 2])
        await bystander.gets_a_token()
        await raw.send(chunks[len(chunks) // 2 :])
        status, answer = await raw.answer()
        assert status == 400, "the whole body was read, and max_tokens is checked"
        assert answer["error"]["param"] == "max_tokens"  # type: ignore[index]


async def test_slow_heads_and_bodies_are_given_up(impatient: Gateway, scheduler: FakeScheduler) -> None:
    async with contextlib.AsyncExitStack() as stack:
        bystander = await stack.enter_async_context(streaming(impatient, scheduler))
        beginnings = (
            b"",  # nothing at all
            b"\r\n",
            b"GET /hea",
            _POST + b"content-length: 10\r\n\r\n{",
            _POST + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n",
        )
        slow = [await stack.enter_async_context(Raw.to(impatient)) for _ in beginnings]
        for raw, beginning in zip(slow, beginnings, strict=True):
            await raw.send(beginning)
        await bystander.gets_a_token()
        for raw in slow:
            status, body = await raw.answer()
            assert status == 408
            assert body["error"]["code"] == "request_timeout"  # type: ignore[index]
            await raw.is_closed()


@pytest.mark.slow
async def test_a_head_that_drips_is_given_up(impatient: Gateway) -> None:
    async with Raw.to(impatient) as raw:
        answer = asyncio.create_task(raw.answer())
        await raw.send(b"GET /health HTTP/1.1\r\n")
        while not answer.done():
            await raw.send(b"x-a: b\r\n")
            await asyncio.sleep(0.05)
        assert (await answer)[0] == 408


@pytest.mark.slow
async def test_a_client_that_waits_for_its_stream_is_not_slow(impatient: Gateway, scheduler: FakeScheduler) -> None:
    """No deadline of the request's arrival ends what is being answered."""
    async with streaming(impatient, scheduler) as bystander:
        await asyncio.sleep(4)
        await bystander.gets_a_token()


async def test_connections_are_counted(impatient: Gateway, scheduler: FakeScheduler) -> None:
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(streaming(impatient, scheduler))
        raws = [await stack.enter_async_context(Raw.to(impatient)) for _ in range(8)]
        status, body = await raws[-1].answer()
        assert status == 503
        assert body["error"]["code"] == "service_unavailable"  # type: ignore[index]
        await raws[-1].is_closed()
    # The others have gone, so there is room again.
    async with asyncio.timeout(_WAIT_S):
        async with httpx.AsyncClient(base_url=impatient.url) as http:
            while (await http.get("/health")).status_code != 200:
                await asyncio.sleep(0.05)


async def test_many_requests_at_once_on_one_connection(gateway: Gateway) -> None:
    request = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    async with Raw.to(gateway) as raw:
        await raw.send(request * 8)
        for _ in range(8):
            assert (await raw.answer())[0] == 200
        await raw.send(request * 1_000)
        await raw.is_closed()
