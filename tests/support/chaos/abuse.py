"""Clients that abuse the protocols, over bare sockets. Each gives what the server answered before it closed."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from typing import Final

from support.chaos.server import ChaosServer

# A server that neither answers nor closes for so long would fail the test.
_TIMEOUT_S: Final = 120.0
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 1, 3, 4, 6, 7
_END_HEADERS: Final = 4
_LAST_PING: Final = b"lastping"


@contextlib.contextmanager
def connection(port: int) -> Iterator[socket.socket]:
    """To a port of the server."""
    with socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S) as opened:
        yield opened


def read_to_end(opened: socket.socket) -> bytes:
    """What comes until the server closes. A reset is an end as well."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := opened.recv(1 << 16):
            received += data
    return received


def send_all(opened: socket.socket, pieces: Iterator[bytes]) -> None:
    """Sends until there is no more, or the server closes."""
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            opened.sendall(piece)


def slow_head(server: ChaosServer) -> bytes:
    """Slowloris: begins a request and never ends its headers."""
    with connection(server.port) as opened:
        opened.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        return read_to_end(opened)


def slow_body(server: ChaosServer) -> bytes:
    """Announces a body, and sends the first byte of it."""
    with connection(server.port) as opened:
        opened.sendall(_head("Content-Length: 1000") + b"{")
        return read_to_end(opened)


def large_head(server: ChaosServer, size: int) -> bytes:
    """One header of so many bytes."""
    with connection(server.port) as opened:
        send_all(opened, iter([b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Large: ", *_repeat(b"a", size)]))
        return read_to_end(opened)


def large_body(server: ChaosServer, size: int) -> bytes:
    """A body of so many bytes, of JSON that never ends."""
    with connection(server.port) as opened:
        head = _head(f"Content-Length: {size}") + b'{"prompt": "'
        send_all(opened, iter([head, *_repeat(b"a", size - 12)]))
        return read_to_end(opened)


def many_chunks(server: ChaosServer, count: int) -> bytes:
    """A body in chunks of one byte: a valid request, behind white space."""
    body = b'{"model": "quire-tiny", "prompt": "x", "max_tokens": 1}'
    chunks = b"1\r\n \r\n" * 10_000
    with connection(server.port) as opened:
        end = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        send_all(opened, iter([_head("Transfer-Encoding: chunked"), *[chunks] * (count // 10_000), end]))
        return read_to_end(opened)


def rapid_reset(server: ChaosServer, count: int) -> bytes:
    """HTTP/2: opens streams and resets them at once (CVE-2023-44487)."""
    with connection(server.grpc_port) as opened:
        opened.sendall(_PREFACE + _frame(_SETTINGS))
        pairs = (
            _frame(_HEADERS, _END_HEADERS, stream, _call_headers())
            + _frame(_RST_STREAM, 0, stream, struct.pack(">I", 8))
            for stream in range(1, 2 * count, 2)
        )
        send_all(opened, pairs)
        return _answer_to_ping(opened)


def ping_flood(server: ChaosServer, count: int) -> bytes:
    """HTTP/2: pings without end."""
    with connection(server.grpc_port) as opened:
        opened.sendall(_PREFACE + _frame(_SETTINGS))
        pings = _frame(_PING, 0, 0, b"01234567") * 1000
        send_all(opened, iter([pings] * (count // 1000)))
        return read_to_end(opened)


def lying_length(server: ChaosServer) -> bytes:
    """gRPC: a message that says it has 4 GiB."""
    with connection(server.grpc_port) as opened:
        headers = _frame(_HEADERS, _END_HEADERS, 1, _call_headers())
        opened.sendall(_PREFACE + _frame(_SETTINGS) + headers + _frame(0, 0, 1, b"\0" + b"\xff" * 4 + b"x" * 100))
        opened.sendall(_frame(_SETTINGS, 1))
        received = b""
        while b"grpc-status" not in received and (data := opened.recv(1 << 16)):
            received += data
        return received


def _head(*lines: str) -> bytes:
    common = ["POST /v1/completions HTTP/1.1", "Host: x", "Content-Type: application/json", "Connection: close"]
    return "\r\n".join([*common, *lines, "", ""]).encode()


def _repeat(byte: bytes, size: int) -> Iterator[bytes]:
    piece = byte * (1 << 16)
    for start in range(0, size, len(piece)):
        yield piece[: size - start]


def _frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """RFC 9113, section 4.1."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _call_headers() -> bytes:
    """A gRPC call's headers as literals without indexing (RFC 7541, section 6.2.2)."""
    fields = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": b"/quire.v1.GenerateService/Generate",
        b":authority": b"x",
        b"te": b"trailers",
        b"content-type": b"application/grpc",
    }
    return b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in fields.items())


def _answer_to_ping(opened: socket.socket) -> bytes:
    """What came until the server answered a last ping, or closed. It has dealt with all that was sent before then."""
    received = b""
    with contextlib.suppress(ConnectionError):
        opened.sendall(_frame(_PING, 0, 0, _LAST_PING))
        while _LAST_PING not in received and (data := opened.recv(1 << 16)):
            received += data
    return received
