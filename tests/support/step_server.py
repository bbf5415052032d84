"""An executor's process without a model: step streams, both kinds, around any function."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from quire import rpc
from quire.errors import ServiceUnavailableError
from quire.executor.step_stream import Execute, GrpcStepStream, RingStepStream, StepStream
from quire.internal.v1 import executor_pb2_grpc


class StepService(executor_pb2_grpc.ExecutorServiceServicer):
    """The two calls that carry steps."""

    def __init__(self, execute: Execute) -> None:
        self.execute = execute
        self.worker = ThreadPoolExecutor(max_workers=1)
        self.streams: list[StepStream] = []

    async def RunSteps(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async with self._open(GrpcStepStream(self.execute, self.worker), context) as stream:
            async for result in stream.run(requests):
                yield result

    async def AttachRings(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async with self._open(RingStepStream(self.execute, self.worker), context) as stream:
            async for response in stream.run(Path(request.handover_socket)):
                yield response

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
