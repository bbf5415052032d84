"""HTTP/2 frames by hand (RFC 9113), for what no library would send."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_ACK = _END_STREAM = 1
_END_HEADERS = 4
CANCEL = 8


@dataclass(frozen=True)
class Frame:
    """One frame as it came."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, stream: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def headers(stream: int, *fields: tuple[bytes, bytes]) -> bytes:
    """Literals without indexing or Huffman (RFC 7541, 6.2.2); fields of up to 126 bytes."""
    block = b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in fields)
    return frame(HEADERS, stream, block, _END_HEADERS)


def call(stream: int, path: bytes, message: bytes) -> bytes:
    """A whole gRPC request."""
    fields = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"x"))
    begin = headers(stream, *fields, (b"content-type", b"application/grpc"), (b"te", b"trailers"))
    return begin + frame(DATA, stream, b"\0" + struct.pack(">I", len(message)) + message, _END_STREAM)


def reset(stream: int) -> bytes:
    return frame(RST_STREAM, stream, struct.pack(">I", CANCEL))


class Connection:
    """A connection after its preface. Frames that came are read by `wait_for`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, port: int) -> AsyncIterator[Connection]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            connection = cls(reader, writer)
            await connection.send(_PREFACE + frame(SETTINGS, 0) + frame(SETTINGS, 0, flags=_ACK))
            yield connection
        finally:
            writer.close()

    async def send(self, data: bytes) -> bool:
        """Whether the connection still stands."""
        if self._writer.is_closing():
            return False
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError:
            return False
        return True

    async def frames(self) -> AsyncIterator[Frame]:
        """What comes, until the connection ends."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await self._reader.readexactly(9)
                length, stream = int.from_bytes(head[:3], "big"), int.from_bytes(head[5:], "big")
                yield Frame(head[3], head[4], stream, await self._reader.readexactly(length))
