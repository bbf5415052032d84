"""GET /monitor/state: the state of the server, again and again, as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request, Response

from quire.errors import InvalidRequestError, ServiceUnavailableError
from quire.gateway.engine import Engine
from quire.gateway.monitor import DEFAULT_INTERVAL_S, check_interval, check_operator
from quire.gateway.openai.schemas import EVENT
from quire.gateway.streaming import EventStream
from quire.gateway.tenants import tenant_of
from quire.monitor_json import to_plain
from quire.v1 import monitor_pb2

# Proxies end connections on which nothing comes for long; a comment is nothing to the reader.
_KEEP_ALIVE_S: Final = 10.0
_KEEP_ALIVE: Final = b": the scheduler is away\n\n"

_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}

_PARAMETERS: Final = [
    {
        "name": "interval",
        "in": "query",
        "description": "Seconds between two states, from 0.1 to 3600.",
        "schema": {"type": "number", "default": DEFAULT_INTERVAL_S},
    },
    {
        "name": "blocks",
        "in": "query",
        "description": "Whether to send the map of the KV pool and the block tables.",
        "schema": {"type": "boolean", "default": False},
    },
]
_ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "A stream of states.", "content": {"text/event-stream": {"schema": EVENT}}},
    400: {"description": "A parameter has no such value."},
    401: {"description": "The request carries none of the server's API keys."},
    403: {"description": "The API key is not an operator's."},
}


def monitor_routes(engine: Engine) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["server"])

    @router.get("/monitor/state", responses=_ANSWERS, openapi_extra={"parameters": _PARAMETERS})
    async def watch_state(http: Request) -> Response:
        """The state of the server now, and again each `interval` seconds: ServerState of monitor.proto as JSON."""
        check_operator(tenant_of(http.scope))
        request = _request_of(http)
        if http.scope["state"]["is_head"]:
            return Response(media_type=EventStream.media_type)
        states = engine.monitor.states(request)
        return EventStream(_events(states), lambda: None)

    return router


def _request_of(http: Request) -> monitor_pb2.WatchServerRequest:
    """Raises InvalidRequestError that names the parameter."""
    interval, blocks = http.query_params.get("interval"), http.query_params.get("blocks")
    try:
        interval_s = DEFAULT_INTERVAL_S if interval is None else float(interval)
    except ValueError as error:
        raise InvalidRequestError(
            f"interval must be a number of seconds, not {interval!r}", field="interval"
        ) from error
    if not interval_s:
        raise InvalidRequestError("interval must be above 0", field="interval")
    check_interval(interval_s, "interval")
    with_blocks = False if blocks is None else _BOOLEANS.get(blocks.lower())
    if with_blocks is None:
        raise InvalidRequestError(f"blocks must be true or false, not {blocks!r}", field="blocks")
    return monitor_pb2.WatchServerRequest(interval_s=interval_s, with_blocks=with_blocks)


async def _events(states: AsyncGenerator[monitor_pb2.ServerState, None]) -> AsyncGenerator[bytes, None]:
    """An event for each state, and comments while none come, until the server shuts down."""
    with contextlib.suppress(ServiceUnavailableError):
        async for state in _with_pauses(states):
            yield _KEEP_ALIVE if state is None else b"data: " + msgspec.json.encode(to_plain(state)) + b"\n\n"


async def _with_pauses(
    states: AsyncGenerator[monitor_pb2.ServerState, None],
) -> AsyncIterator[monitor_pb2.ServerState | None]:
    """The states, and None whenever none has come for some time."""
    async with contextlib.aclosing(states):
        coming: asyncio.Future[monitor_pb2.ServerState] | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(states))
                await asyncio.wait((coming,), timeout=_KEEP_ALIVE_S)
                if not coming.done():
                    yield None
                    continue
                state, coming = coming.result(), None
                yield state
        finally:
            if coming is not None:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
