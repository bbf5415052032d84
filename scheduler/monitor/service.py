"""MonitorService, as the scheduler serves it to gateways, which guard it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc

from quire.scheduler.monitor.block_map import BlockStates
from quire.scheduler.monitor.state import StateMaker
from quire.scheduler.monitor.watch import Pace, Watch
from quire.scheduler.scheduler import Scheduler
from quire.v1 import monitor_pb2, monitor_pb2_grpc

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class MonitorService(monitor_pb2_grpc.MonitorServiceServicer):
    """What onlookers are told. As long as there are none, nothing is computed."""

    def __init__(self, scheduler: Scheduler, model: str) -> None:
        self._maker = StateMaker(scheduler, model)
        pace = Pace()
        self._watch = Watch(self._maker, pace, None)
        self._watch_with_blocks = Watch(self._maker, pace, BlockStates(scheduler.kv_cache.pool))

    async def GetLoads(  # noqa: N802
        self, request: monitor_pb2.GetLoadsRequest, context: Context
    ) -> monitor_pb2.Loads:
        """See the proto."""
        return self._maker.loads()

    async def WatchServer(  # noqa: N802
        self, request: monitor_pb2.WatchServerRequest, context: Context
    ) -> AsyncIterator[monitor_pb2.ServerState]:
        """See the proto."""
        watch = self._watch_with_blocks if request.with_blocks else self._watch
        async for state in watch.states(request.interval_s):
            yield state
