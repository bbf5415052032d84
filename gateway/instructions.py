"""What a scheduler is told of requests that it has: which to abort, which to pause. Nobody waits for the answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import grpc

from quire.gateway.connection import CALL_TIMEOUT_S, RETRY_S, UNREACHED, SchedulerConnection
from quire.internal.v1 import scheduler_pb2
from quire.rpc import errors_from_status

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S: Final = 1.0


class Instructions:
    """Calls that are under way.

    One that fails is repeated for as long as the output stream is the same. When that ends the scheduler forgets all
    that it was told, and what it must know of a request comes with its next submission, or after it.
    """

    def __init__(self, connection: SchedulerConnection) -> None:
        self._connection = connection
        self._tasks: set[asyncio.Task[None]] = set()

    def abort(self, key: int, indices: Sequence[int], reason: scheduler_pb2.AbortReason.ValueType) -> None:
        """Ends sequences of a request, all if none is named; returns at once."""
        if self._connection.has_stream:
            request = scheduler_pb2.AbortRequest(
                gateway_id=self._connection.gateway_id, request_key=key, sequence_indices=indices, reason=reason
            )
            self.spawn(self._tell(self._connection.stub.Abort, request))

    async def set_flow(self, key: int, paused: bool) -> None:
        """Pauses or resumes a request; returns once that is known."""
        if self._connection.has_stream:
            gateway_id = self._connection.gateway_id
            request = scheduler_pb2.SetFlowRequest(gateway_id=gateway_id, request_key=key, paused=paused)
            await self._tell(self._connection.stub.SetFlow, request)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs it aside."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Gives what is under way a second."""
        tasks = list(self._tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_TIMEOUT_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tell(self, call: Callable[..., grpc.aio.UnaryUnaryCall[Any, Any]], request: Any) -> None:
        epoch = self._connection.epoch
        while True:
            try:
                with errors_from_status("the scheduler"):
                    await call(request, timeout=CALL_TIMEOUT_S)
            except UNREACHED as error:
                logger.debug("the scheduler could not be told: %s", error.message)
            else:
                return
            await asyncio.sleep(RETRY_S)
            if not self._connection.is_on(epoch):
                return
