"""MonitorService, as the scheduler serves it to gateways, which guard it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final, TypeAlias

import grpc

from quire.scheduler.metrics import MetricStore
from quire.scheduler.monitor.block_map import BlockStates
from quire.scheduler.monitor.kv_stream import KvEventStreams
from quire.scheduler.monitor.pace import Pace
from quire.scheduler.monitor.state import StateMaker
from quire.scheduler.monitor.watch import Watch
from quire.scheduler.scheduler import Scheduler
from quire.v1 import monitor_pb2, monitor_pb2_grpc

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

# Of the scheduler's time, for all who watch.
_STATES_SHARE: Final = 0.02


class MonitorService(monitor_pb2_grpc.MonitorServiceServicer):
    """What onlookers are told. As long as there are none, nothing is computed."""

    def __init__(self, scheduler: Scheduler, metrics: MetricStore, model: str) -> None:
        self._maker = StateMaker(scheduler, metrics, model)
        pace = Pace(_STATES_SHARE)
        self._watch = Watch(self._maker, pace, None)
        self._watch_with_blocks = Watch(self._maker, pace, BlockStates(scheduler.kv_cache.pool))
        self._kv_events = KvEventStreams(scheduler.kv_cache)
        # The calls that have no end of their own.
        self._streams: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def close(self) -> None:
        """Ends all streams, which the server would wait for: gateways go on with the next scheduler."""
        self._is_closed = True
        for stream in self._streams:
            stream.cancel()

    async def GetLoads(  # noqa: N802
        self, request: monitor_pb2.GetLoadsRequest, context: Context
    ) -> monitor_pb2.Loads:
        """See the proto."""
        return self._maker.loads()

    async def StreamKvEvents(  # noqa: N802
        self, request: monitor_pb2.StreamKvEventsRequest, context: Context
    ) -> AsyncIterator[monitor_pb2.KvEventBatch]:
        """See the proto."""
        batches = self._kv_events.batches(request.source, request.after_id)
        with self._until_closed():
            async with contextlib.aclosing(batches):
                async for batch in batches:
                    yield batch

    async def WatchServer(  # noqa: N802
        self, request: monitor_pb2.WatchServerRequest, context: Context
    ) -> AsyncIterator[monitor_pb2.ServerState]:
        """See the proto."""
        watch = self._watch_with_blocks if request.with_blocks else self._watch
        states = watch.states(request.interval_s)
        with self._until_closed():
            async with contextlib.aclosing(states):
                async for state in states:
                    yield state

    @contextlib.contextmanager
    def _until_closed(self) -> Iterator[None]:
        """Around a stream, which ends well when it is closed: of one that is cancelled gRPC would say nothing."""
        task: Any = asyncio.current_task()
        self._streams.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self._is_closed or task.uncancel() > 0:
                raise
        finally:
            self._streams.discard(task)
