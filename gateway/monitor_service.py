"""MonitorService for operators, on the gateway's gRPC port."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from quire.errors import ServiceUnavailableError
from quire.gateway.access import Access, tenant_of_call
from quire.gateway.engine import Engine
from quire.gateway.monitor import Monitor, check_operator
from quire.rpc import errors_to_status
from quire.v1 import monitor_pb2, monitor_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class MonitorService(monitor_pb2_grpc.MonitorServiceServicer):
    """Serves while an engine is attached; before and after, every call is UNAVAILABLE."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._monitor: Monitor | None = None

    def attach(self, engine: Engine) -> None:
        """Begins to serve."""
        self._monitor = engine.monitor

    def detach(self) -> None:
        """Takes no more calls."""
        self._monitor = None

    async def GetLoads(  # noqa: N802
        self, request: monitor_pb2.GetLoadsRequest, context: Context
    ) -> monitor_pb2.Loads:
        """See the proto."""
        async with errors_to_status(context):
            return await self._begin(context).loads()

    async def StreamKvEvents(  # noqa: N802
        self, request: monitor_pb2.StreamKvEventsRequest, context: Context
    ) -> AsyncIterator[monitor_pb2.KvEventBatch]:
        """See the proto."""
        async with errors_to_status(context), contextlib.aclosing(self._begin(context).kv_events(request)) as batches:
            async for batch in batches:
                yield batch

    async def WatchServer(  # noqa: N802
        self, request: monitor_pb2.WatchServerRequest, context: Context
    ) -> AsyncIterator[monitor_pb2.ServerState]:
        """See the proto."""
        async with errors_to_status(context), contextlib.aclosing(self._begin(context).states(request)) as states:
            async for state in states:
                yield state

    def _begin(self, context: Context) -> Monitor:
        """Raises AuthenticationError, PermissionDeniedError and ServiceUnavailableError."""
        check_operator(tenant_of_call(self._access, context))
        if self._monitor is None:
            raise ServiceUnavailableError("the server is starting or shutting down")
        return self._monitor
