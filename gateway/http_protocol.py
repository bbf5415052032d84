"""HTTP/1.1 as uvicorn speaks it, with bounds on what a connection may hold and on how long it may take.

| what | bound | then |
|---|---|---|
| request line and headers, also trailers and chunk extensions | 64 KiB | 431 |
| time for them, from the connection's or the request's beginning | `--header-timeout` | 408 |
| time for a body | `--body-timeout`, and a second for each 16 KiB that came | 408 |
| body (`streaming.read_body`, and what follows an early answer) | 64 MiB | 413 |
| bodies that are being received, of all connections | 1 GiB | 503, for those of 1 MiB or more |
| requests that wait on one connection (pipelining) | 16 | closed |
| connections of a gateway | `--max-connections` | 503 |

A refused client gets two seconds to read why: closing at once would reset the connection, and the answer be lost.
No connection has timers for this: the server looks at all of them once a second (`end_overdue`).
"""

from __future__ import annotations

import asyncio
import http
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from quire.certificates import ServerCertificates
from quire.config import EdgeOptions
from quire.gateway.openai.errors import error_body
from quire.gateway.tls import name_peer
from quire.rpc import MAX_MESSAGE_BYTES

_MAX_HEAD_BYTES = 64 << 10
_MAX_PIPELINED = 16
_MAX_BODIES_BYTES = 1 << 30
# Bodies that are always received.
_SMALL_BODY_BYTES = 1 << 20
# So many bytes give a body one more second.
_BODY_BYTES_PER_S = 16 << 10
# What is parsed between two looks at the limits.
_PIECE_BYTES = 64 << 10
_LINGER_S = 2.0


class LimitedConfig(uvicorn.Config):
    """Uvicorn's settings, with the limits and our certificate."""

    def __init__(self, app: Any, limits: EdgeOptions, certificates: ServerCertificates | None, **settings: Any) -> None:
        super().__init__(app, http=LimitedProtocol, ws="none", **settings)
        self.limits = limits
        # Of all bodies that are not complete.
        self.bodies_bytes = 0
        self._certificates = certificates

    def load(self) -> None:
        """Called once, by the server."""
        super().load()
        if self._certificates is not None:
            self.ssl = self._certificates.ssl_context()


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self,
        config: LimitedConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = config.limits
        self._all_bodies = config
        # When what is being received must be complete; None between requests, which uvicorn's keep-alive bounds.
        self._overdue_at: float | None = None
        # Bytes since the last that was part of a body or ended something: of a head, trailers, a chunk's extension.
        self._undelivered = 0
        self._body_bytes = 0
        self._is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The handshake, if there is one, is done."""
        super().connection_made(transport)
        self._overdue_at = self.loop.time() + self._limits.header_timeout
        if len(self.connections) > self._limits.max_connections:
            self._refuse(503, "the server has as many connections as it takes")

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left, or was left."""
        super().connection_lost(exc)
        self._forget_body()

    def data_received(self, data: bytes) -> None:
        """Parses, in pieces."""
        if self._overdue_at is None and self._is_idle():
            self._overdue_at = self.loop.time() + self._limits.header_timeout
        for start in range(0, len(data), _PIECE_BYTES):
            if self._is_refused or self.transport.is_closing():
                return
            piece = data if len(data) <= _PIECE_BYTES else data[start : start + _PIECE_BYTES]
            self._undelivered += len(piece)
            super().data_received(piece)
            self._check_sizes()

    def eof_received(self) -> None:
        """Nothing more will come: a refused client has read why."""
        if self._is_refused:
            self.transport.close()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._forget_body()
        name_peer(self.scope, self.transport)  # type: ignore[arg-type] # a scope may have more than its type says

    def on_headers_complete(self) -> None:
        """The application is called."""
        super().on_headers_complete()
        self._undelivered = 0
        self._overdue_at = self.loop.time() + self._limits.body_timeout

    def on_body(self, body: bytes) -> None:
        """Part of a body, without its framing."""
        super().on_body(body)
        self._undelivered = 0
        self._body_bytes += len(body)
        self._all_bodies.bodies_bytes += len(body)
        if self._overdue_at is not None:
            self._overdue_at += len(body) / _BODY_BYTES_PER_S

    def on_message_complete(self) -> None:
        """The request is here."""
        super().on_message_complete()
        self._undelivered = 0
        self._overdue_at = None
        self._forget_body()

    def on_response_complete(self) -> None:
        """What came of the next request meanwhile was left unread: its time begins."""
        super().on_response_complete()
        if self._overdue_at is not None:
            self._overdue_at = self.loop.time() + self._limits.body_timeout

    def end_if_overdue(self, now: float) -> None:
        """Ends the connection if its client takes too long."""
        if self._overdue_at is None or now < self._overdue_at or self._is_refused:
            return
        if self.pipeline or not (self._is_idle() or self.cycle.more_body):
            return  # an earlier request is being answered, and this one is not read meanwhile
        if self._is_idle() and self.cycle is not None and self.cycle.more_body:
            self.transport.close()  # it was answered before its end
        else:
            self._refuse(408, "the request did not arrive in time")

    def send_400_response(self, msg: str) -> None:
        """It is not HTTP."""
        self._refuse(400, msg)

    def _check_sizes(self) -> None:
        if self._undelivered >= _MAX_HEAD_BYTES:
            self._refuse(431, f"request line and headers have {_MAX_HEAD_BYTES >> 10} KiB or more")
        elif self._body_bytes > MAX_MESSAGE_BYTES and self._is_idle():
            # The application has refused it before; nobody reads the rest.
            self.transport.close()
        elif self._body_bytes >= _SMALL_BODY_BYTES and self._all_bodies.bodies_bytes > _MAX_BODIES_BYTES:
            self._refuse(503, "the server receives as much as it can hold; try again later")
        elif len(self.pipeline) > _MAX_PIPELINED:
            self.transport.close()

    def _forget_body(self) -> None:
        self._all_bodies.bodies_bytes -= self._body_bytes
        self._body_bytes = 0

    def _is_idle(self) -> bool:
        """Whether no answer is owed."""
        return self.cycle is None or self.cycle.response_complete

    def _refuse(self, status: int, message: str) -> None:
        """Answers, and closes when the client has read it or after a moment."""
        self._is_refused = True
        self._overdue_at = None
        self._forget_body()
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        begun = [cycle for cycle, _ in self.pipeline]
        begun += [] if self._is_idle() else [self.cycle]
        for cycle in begun:
            cycle.disconnected = True
            cycle.message_event.set()
        if any(cycle.response_started for cycle in begun):
            # The answer to an earlier request is under way, and this one's cannot overtake it.
            self.transport.close()
            return
        self.transport.write(_answer(status, message))
        # What the client still sends is dropped, so that it comes to reading.
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.abort)


def end_overdue(state: ServerState, now: float) -> None:
    """Ends the connections of a server whose clients take too long; `now` is the loop's time."""
    for connection in list(state.connections):
        if isinstance(connection, LimitedProtocol):
            connection.end_if_overdue(now)


def _answer(status: int, message: str) -> bytes:
    """An answer in OpenAI's form."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = error_body(message, kind, None, http.HTTPStatus(status).name.lower())
    lines = (
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *(["retry-after: 1"] if status == http.HTTPStatus.SERVICE_UNAVAILABLE else []),
        "connection: close",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
