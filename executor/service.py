"""ExecutorService: protobuf in, ModelRunner, protobuf out.

One worker thread runs everything that touches the model, in the order of arrival.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from quire import rpc
from quire.errors import DuplicateRequestError, ServiceUnavailableError
from quire.executor.memory import MemoryReport, default_pool_share, host_memory
from quire.executor.model_runner import ModelRunner
from quire.executor.step_serving import StepStream
from quire.executor.step_stream import GrpcStepStream, RingStepStream
from quire.internal.v1 import executor_pb2, executor_pb2_grpc

logger = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]


class ExecutorService(executor_pb2_grpc.ExecutorServiceServicer):
    """Serves one ModelRunner to one scheduler."""

    def __init__(self, runner: ModelRunner, measure_memory: Callable[[], MemoryReport] = host_memory) -> None:
        self._runner = runner
        self._measure_memory = measure_memory
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._stream: StepStream | None = None
        # The one that is open, or was last: its step may not be over.
        self._latest: StepStream | None = None

    async def Describe(  # noqa: N802 - gRPC's name
        self, request: executor_pb2.DescribeExecutorRequest, context: _Context
    ) -> executor_pb2.ExecutorDescription:
        return _describe(self._runner, self._measure_memory())

    async def AttachKvPool(  # noqa: N802
        self, request: executor_pb2.AttachKvPoolRequest, context: _Context
    ) -> executor_pb2.AttachKvPoolResponse:
        """Ends the stream of the scheduler before this one, if it still stands."""
        async with rpc.errors_to_status(context):
            if self._stream is not None:
                self._stream.end(ServiceUnavailableError("another KV pool is being attached"))
                self._stream = None
            loop = asyncio.get_running_loop()
            has_content = await loop.run_in_executor(self._worker, self._runner.attach, request)
            logger.info(
                "attached a KV pool of %d blocks of %d tokens, epoch %d%s",
                request.num_blocks,
                request.block_size,
                request.epoch,
                "" if has_content else ", which is empty",
            )
        return executor_pb2.AttachKvPoolResponse(has_content=has_content)

    async def RunSteps(  # noqa: N802
        self, request_iterator: AsyncIterator[executor_pb2.StepRequest], context: _Context
    ) -> AsyncIterator[executor_pb2.StepResult]:
        async with rpc.errors_to_status(context):
            stream = GrpcStepStream(self._runner, self._worker)
            with self._open(stream):
                async for result in stream.run(request_iterator):
                    yield result

    async def AttachRings(  # noqa: N802
        self, request: executor_pb2.AttachRingsRequest, context: _Context
    ) -> AsyncIterator[executor_pb2.AttachRingsResponse]:
        async with rpc.errors_to_status(context):
            stream = RingStepStream(self._runner, self._worker)
            with self._open(stream):
                async for response in stream.run(Path(request.handover_socket)):
                    yield response

    async def GetProgress(  # noqa: N802
        self, request: executor_pb2.GetProgressRequest, context: _Context
    ) -> executor_pb2.GetProgressResponse:
        """In the middle of a step too, and in the last one of a stream that has ended: the model has its own thread."""
        return executor_pb2.GetProgressResponse(progress=self._latest.counters.progress if self._latest else 0)

    async def close(self) -> None:
        """Ends the stream and the worker."""
        if self._stream is not None:
            self._stream.end(ServiceUnavailableError("the executor is shutting down"))
            self._stream = None
        self._worker.submit(self._runner.close)
        await asyncio.to_thread(self._worker.shutdown)

    @contextlib.contextmanager
    def _open(self, stream: StepStream) -> Iterator[None]:
        """Makes it the one stream of steps for as long as its call lasts. Raises DuplicateRequestError."""
        if self._stream is not None:
            raise DuplicateRequestError("another stream of steps is open")
        self._stream = self._latest = stream
        try:
            yield
        finally:
            stream.end(ServiceUnavailableError("the stream has ended"))
            if self._stream is stream:
                self._stream = None
                if stream.has_begun:
                    # Its scheduler is gone, and with it whoever knows what the pool holds.
                    self._worker.submit(self._runner.detach)


def _describe(runner: ModelRunner, memory: MemoryReport) -> executor_pb2.ExecutorDescription:
    model, device_memory = runner.model, runner.device_memory
    config, group = model.config, model.cache_group
    return executor_pb2.ExecutorDescription(
        model=model.name,
        architecture=config.architecture,
        dtype=model.dtype_name,
        rank=runner.rank,
        num_ranks=1,
        cache_groups=[
            executor_pb2.CacheGroup(
                id=0,
                kind=executor_pb2.CACHE_GROUP_KIND_FULL_ATTENTION,
                num_layers=group.num_layers,
                num_kv_heads=group.num_kv_heads,
                head_dim=group.head_dim,
                bytes_per_token=group.bytes_per_token,
                element_bytes=group.element_bytes,
                scale_bytes=group.scale_bytes,
            )
        ],
        max_model_len=model.max_model_len,
        vocab_size=config.vocab_size,
        weight_bytes=model.decoder.num_bytes,
        available_bytes=memory.available_bytes,
        total_bytes=memory.total_bytes,
        overhead_bytes=memory.overhead_bytes,
        host_available_bytes=host_memory().available_bytes,
        fingerprint=model.fingerprint,
        length_independent_tokens=config.rotary.length_independent_tokens,
        hidden_size=config.hidden_size,
        pid=os.getpid(),
        pool_home=executor_pb2.POOL_HOME_EXECUTOR if device_memory else executor_pb2.POOL_HOME_HOST,
        default_pool_share=default_pool_share(model.device),
    )
