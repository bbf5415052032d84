"""The HTTP client and the OpenAI backend, against servers that answer badly."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from quire.bench.backends import ChatBackend, CompletionsBackend
from quire.bench.http_client import HttpClient
from quire.bench.prompts import BenchRequest
from quire.bench.settings import ServeBenchSettings
from quire.errors import ServiceUnavailableError

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: text/event-stream\r\n\r\n"
TOKEN = b'data: {"choices":[{"index":0,"text":"a"}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"text":"b","finish_reason":"length"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}\n\n'
DONE = b"data: [DONE]\n\n"


def _chunked(*events: bytes, ended: bool = True) -> bytes:
    return STREAM_HEAD + b"".join(b"%x\r\n%s\r\n" % (len(e), e) for e in events) + (b"0\r\n\r\n" if ended else b"")


@contextlib.asynccontextmanager
async def _server(*answers: bytes, close: bool = False) -> AsyncIterator[tuple[str, list[int]]]:
    """Gives each request the next answer; yields its URL and, per connection, how many requests it carried."""
    left, connections = list(answers), []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(connections)
        connections.append(0)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionResetError):
            while left:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
                connections[number] += 1
                writer.write(left.pop(0))
                await writer.drain()
                if close:
                    break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1")
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", connections


async def _send(url: str, kind: type = CompletionsBackend):
    backend = kind(ServeBenchSettings.load({"base_url": url}), "m")
    try:
        return await asyncio.wait_for(backend.send(BenchRequest([1, 2, 3], 5)), 10)
    finally:
        await backend.close()


async def test_tokens_are_counted_from_the_usage():
    async with _server(_chunked(TOKEN, LAST, USAGE, DONE)) as (url, _):
        timeline = await _send(url)
    assert timeline.error == ""
    assert (timeline.prompt_len, timeline.output_len, len(timeline.arrived)) == (3, 5, 2)
    assert timeline.sent < timeline.arrived[0] <= timeline.arrived[1] == timeline.ended


async def test_a_chats_role_is_no_token():
    role = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
    word = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n'
    end = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
    async with _server(_chunked(role, word, end, USAGE, DONE)) as (url, _):
        timeline = await _send(url, ChatBackend)
    assert timeline.succeeded
    assert len(timeline.arrived) == 1


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 400 Bad Request\r\ncontent-length: 7\r\n\r\n{broken", "HTTP 400: {broken"),
        (b"nonsense\r\n\r\n", "not HTTP"),
        (_chunked(TOKEN, ended=False), "the connection broke"),
        (_chunked(TOKEN, DONE), "without a finish reason"),
        (_chunked(TOKEN, LAST, DONE), "no usage"),
        (_chunked(TOKEN, b'data: {"error":{"message":"overloaded"}}\n\n'), "overloaded"),
    ],
)
async def test_a_bad_answer_is_a_failed_request(answer, error):
    async with _server(answer, close=True) as (url, _):
        timeline = await _send(url)
    assert error in timeline.error


async def test_a_server_that_is_not_there():
    with pytest.raises(ServiceUnavailableError, match="no connection"):
        await HttpClient("http://127.0.0.1:1").get("/v1/models")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x"])
def test_a_url_that_is_none(url):
    with pytest.raises(ServiceUnavailableError, match="URL"):
        HttpClient(url)


async def test_connections_are_reused_one_after_another():
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
    async with _server(*[answer] * 3) as (url, connections):
        client = HttpClient(url)
        for _ in range(3):
            assert await asyncio.wait_for(client.get("/"), 10) == (200, b"{}")
        client.close()
    assert connections == [3]


async def test_a_connection_that_the_server_closes_is_replaced():
    answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}"
    async with _server(*[answer] * 2, close=True) as (url, connections):
        client = HttpClient(url)
        for _ in range(2):
            assert (await asyncio.wait_for(client.get("/"), 10))[0] == 200
        client.close()
    assert connections == [1, 1]
