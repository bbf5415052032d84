"""Server-sent events, and noticing that a client has gone away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from fastapi import Request, Response
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from quire.errors import BodyTooLargeError, MediaTypeError, RequestAbortedError
from quire.rpc import MAX_MESSAGE_BYTES


class EventStream(Response):
    """Sends events as they come; stops when the client leaves, and closes what makes them in any case."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], close: Callable[[], None]) -> None:
        """`close` is called once, whether or not anything was sent."""
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        # The body's length is not known beforehand.
        del self.headers["content-length"]
        self._events = events
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request (ASGI)."""
        try:
            async with unless_disconnected(receive):
                await self._send(send)
        except (RequestAbortedError, OSError):
            pass  # nobody is left to be told
        finally:
            self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with contextlib.aclosing(self._events) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@contextlib.asynccontextmanager
async def unless_disconnected(receive: Receive) -> AsyncIterator[None]:
    """Cancels the block when the client leaves. Raises RequestAbortedError then.

    The request's body must have been read.
    """
    working = asyncio.current_task()
    assert working is not None, "an ASGI application runs in a task"
    has_left = False

    async def watch() -> None:
        nonlocal has_left
        while (await receive())["type"] != "http.disconnect":
            pass
        has_left = True
        working.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        # A cancellation of somebody else's goes on, as asyncio.timeout has it.
        if not has_left or working.uncancel() > 0:
            raise
        raise RequestAbortedError("the client closed the connection") from None
    finally:
        watching.cancel()


async def read_body(request: Request) -> bytes:
    """The request's JSON, in bytes.

    Raises MediaTypeError if it is said to be something else (to say nothing is fine), BodyTooLargeError, and
    RequestAbortedError if it never ends.
    """
    _check_headers(request.headers)
    body = bytearray()
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise RequestAbortedError("the client closed the connection")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_MESSAGE_BYTES:
            raise _too_large()
    return bytes(body)


def _check_headers(headers: Headers) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise MediaTypeError("the Content-Type must be application/json")
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_MESSAGE_BYTES:
        raise _too_large()


def _too_large() -> BodyTooLargeError:
    return BodyTooLargeError(f"the body is larger than {MAX_MESSAGE_BYTES >> 20} MiB")
