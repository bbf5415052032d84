"""An executor's process without a model: step streams, both kinds, around any function."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from quire import rpc
from quire.errors import ServiceUnavailableError
from quire.executor.pending_step import FinishedStep
from quire.executor.step_serving import StepStream
from quire.executor.step_stream import GrpcStepStream, RingStepStream
from quire.internal.v1 import executor_pb2, executor_pb2_grpc
from quire.step_counters import StepCounters


class FunctionRunner:
    """A step is a function of its plan, as a model of one layer."""

    max_in_flight = 1
    completion_fd = None

    def __init__(self, execute: Callable[[executor_pb2.StepPlan], executor_pb2.StepResult]) -> None:
        self._execute = execute

    def launch(self, plan: executor_pb2.StepPlan, counters: StepCounters) -> FinishedStep:
        counters.count_layer()
        return FinishedStep(self._execute(plan))

    def drain(self) -> None:
        pass

    def use_pause(self, *, idle: bool) -> bool:
        return False


class StepService(executor_pb2_grpc.ExecutorServiceServicer):
    """The calls that carry steps, and that watch them."""

    def __init__(self, execute: Callable[[executor_pb2.StepPlan], executor_pb2.StepResult]) -> None:
        # Tests put another in its place.
        self.execute = execute
        self._runner = FunctionRunner(lambda plan: self.execute(plan))
        self.worker = ThreadPoolExecutor(max_workers=1)
        self.streams: list[StepStream] = []

    async def RunSteps(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async with self._open(GrpcStepStream(self._runner, self.worker), context) as stream:
            async for result in stream.run(requests):
                yield result

    async def AttachRings(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async with self._open(RingStepStream(self._runner, self.worker), context) as stream:
            async for response in stream.run(Path(request.handover_socket)):
                yield response

    async def GetProgress(self, request: Any, context: Any) -> executor_pb2.GetProgressResponse:  # noqa: N802
        return executor_pb2.GetProgressResponse(progress=self.streams[-1].counters.progress)

    @contextlib.asynccontextmanager
    async def _open(self, stream: StepStream, context: Any) -> AsyncIterator[Any]:
        self.streams.append(stream)
        async with rpc.errors_to_status(context):
            try:
                yield stream
            finally:
                stream.end(ServiceUnavailableError("the stream has ended"))


class OldStepService(executor_pb2_grpc.ExecutorServiceServicer):
    """An executor from before there were rings."""


@contextlib.asynccontextmanager
async def serving(service: executor_pb2_grpc.ExecutorServiceServicer, address: str) -> AsyncIterator[str]:
    """Serves; yields the address, with the port that was bound in place of port 0."""
    server = rpc.new_server()
    executor_pb2_grpc.add_ExecutorServiceServicer_to_server(service, server)
    port = rpc.bind(server, address)
    await server.start()
    try:
        yield address.replace(":0", f":{port}")
    finally:
        await server.stop(0)
