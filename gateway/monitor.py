"""What onlookers are told: the scheduler's loads, states and KV events, passed on to whoever may see them.

A stream outlives the scheduler that it comes from: it goes on when another one is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final, TypeAlias, TypeVar, cast

import grpc
from google.protobuf.message import Message

from quire.errors import (
    InvalidRequestError,
    PermissionDeniedError,
    ServiceUnavailableError,
)
from quire.gateway.connection import CALL_TIMEOUT_S, RETRY_S, UNREACHED, SchedulerConnection
from quire.gateway.tenants import Tenant
from quire.process import first_of
from quire.rpc import errors_from_status
from quire.v1 import monitor_pb2

M = TypeVar("M", bound=Message)
T = TypeVar("T")
Call: TypeAlias = "grpc.aio.UnaryStreamCall[Any, M]"

# Of states, in seconds.
DEFAULT_INTERVAL_S: Final = 0.5
_LEAST_INTERVAL_S, _MOST_INTERVAL_S = 0.1, 3600.0


class Monitor:
    """A gateway's way to MonitorService of its scheduler."""

    def __init__(self, connection: SchedulerConnection, model: str) -> None:
        """`model` is the name that clients know."""
        self._connection = connection
        self._model = model
        self._has_ended = asyncio.Event()

    def end(self) -> None:
        """Ends all streams, and those to come: the server is shutting down."""
        self._has_ended.set()

    async def loads(self) -> monitor_pb2.Loads:
        """How busy the scheduler is. Raises UnreachedError while there is none."""
        with errors_from_status("the scheduler"):
            loads = await self._connection.monitor.GetLoads(monitor_pb2.GetLoadsRequest(), timeout=CALL_TIMEOUT_S)
        loads.model = self._model
        return loads

    async def states(self, request: monitor_pb2.WatchServerRequest) -> AsyncGenerator[monitor_pb2.ServerState, None]:
        """States, `request.interval_s` apart, until ServiceUnavailableError says that the server shuts down.

        While the scheduler is away none come. Raises InvalidRequestError for an interval that cannot be.
        """
        check_interval(request.interval_s, "interval_s")
        own = monitor_pb2.WatchServerRequest(
            interval_s=request.interval_s or DEFAULT_INTERVAL_S, with_blocks=request.with_blocks
        )
        states = self._follow(lambda: self._connection.monitor.WatchServer(own))
        async with contextlib.aclosing(states):
            async for state in states:
                state.loads.model = self._model
                yield state

    async def kv_events(
        self, request: monitor_pb2.StreamKvEventsRequest
    ) -> AsyncGenerator[monitor_pb2.KvEventBatch, None]:
        """What happens to the prefix cache, until ServiceUnavailableError says that the server shuts down."""
        position = monitor_pb2.StreamKvEventsRequest(source=request.source, after_id=request.after_id)
        batches = self._follow(lambda: self._connection.monitor.StreamKvEvents(position))
        async with contextlib.aclosing(batches):
            async for batch in batches:
                position.source, position.after_id = batch.source, batch.events[-1].id
                yield batch

    async def _follow(self, start: Callable[[], Call[M]]) -> AsyncGenerator[M, None]:
        """The messages of a call, and when the scheduler has gone those of the same call to the next."""
        while True:
            await self._unless_ended(self._connection.wait_open())
            call = start()
            try:
                with errors_from_status("the scheduler"):
                    while isinstance(message := await self._unless_ended(call.read()), Message):
                        yield cast(M, message)
            except (ServiceUnavailableError, *UNREACHED):
                if self._has_ended.is_set():
                    raise
            finally:
                call.cancel()
            await self._unless_ended(asyncio.sleep(RETRY_S))

    async def _unless_ended(self, coming: Awaitable[T]) -> T:
        """What is awaited. Raises ServiceUnavailableError when the server shuts down meanwhile."""

        async def wait() -> T:
            return await coming

        async def end() -> T:
            await self._has_ended.wait()
            raise ServiceUnavailableError("the server is shutting down")

        return await first_of(wait(), end())


def check_interval(interval_s: float, field: str) -> None:
    """Raises InvalidRequestError for seconds between states that are not possible; 0 is the default."""
    if interval_s and not (math.isfinite(interval_s) and _LEAST_INTERVAL_S <= interval_s <= _MOST_INTERVAL_S):
        message = f"{field} must be from {_LEAST_INTERVAL_S:g} to {_MOST_INTERVAL_S:g} seconds, not {interval_s:g}"
        raise InvalidRequestError(message, field=field)


def check_operator(tenant: Tenant) -> None:
    """Raises PermissionDeniedError for a tenant that may not see what concerns all tenants."""
    if not tenant.is_operator:
        message = "only operators may see this: the entry of the API key in --api-keys must say `operator: true`"
        raise PermissionDeniedError(message)
