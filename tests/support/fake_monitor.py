"""MonitorService as gateways find it at a fake scheduler."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc

from quire.columns import pack_u32
from quire.v1 import monitor_pb2, monitor_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class FakeMonitor(monitor_pb2_grpc.MonitorServiceServicer):
    """Says the same again and again; the start of the scheduler is the number of its life."""

    def __init__(self) -> None:
        self.start_ns = 1
        # Those that run now.
        self.num_streams = 0
        self.watch_requests: list[monitor_pb2.WatchServerRequest] = []
        self.kv_requests: list[monitor_pb2.StreamKvEventsRequest] = []
        # Set while it has something to say.
        self.speaks = asyncio.Event()
        self.speaks.set()

    @property
    def loads(self) -> monitor_pb2.Loads:
        return monitor_pb2.Loads(model="/a/path", num_requests_running=2, kv_cache_usage=0.25)

    def state(self, *, with_blocks: bool) -> monitor_pb2.ServerState:
        state = monitor_pb2.ServerState(loads=self.loads, scheduler_start_ns=self.start_ns)
        if with_blocks:
            state.sequences.add(request_id="one", status="running", block_ids=pack_u32([3, 1]))
            state.blocks.is_complete = True
            state.blocks.states = bytes([0, 1, 255])
        return state

    async def GetLoads(  # noqa: N802
        self, request: monitor_pb2.GetLoadsRequest, context: Context
    ) -> monitor_pb2.Loads:
        return self.loads

    async def WatchServer(  # noqa: N802
        self, request: monitor_pb2.WatchServerRequest, context: Context
    ) -> AsyncIterator[monitor_pb2.ServerState]:
        self.watch_requests.append(request)
        with self._counted():
            while True:
                await self.speaks.wait()
                yield self.state(with_blocks=request.with_blocks)
                await asyncio.sleep(0.01)

    async def StreamKvEvents(  # noqa: N802
        self, request: monitor_pb2.StreamKvEventsRequest, context: Context
    ) -> AsyncIterator[monitor_pb2.KvEventBatch]:
        """One event after another, from where the caller is."""
        self.kv_requests.append(request)
        with self._counted():
            for event_id in range(request.after_id + 1, 2**32):
                await self.speaks.wait()
                event = monitor_pb2.KvEvent(id=event_id, removed=monitor_pb2.BlockRemoved(block_hash=b"hash"))
                yield monitor_pb2.KvEventBatch(source="fake", events=[event])
                await asyncio.sleep(0.01)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self.num_streams += 1
        try:
            yield
        finally:
            self.num_streams -= 1
