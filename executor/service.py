"""ExecutorService: protobuf in, ModelRunner, protobuf out.

One worker thread runs everything that touches the model, in the order of arrival. Plans are handed to it as
soon as they are read, so the next step starts when the one before it ends, without a turn of the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import grpc

from quire import rpc
from quire.errors import DuplicateRequestError, QuireError, ServiceUnavailableError
from quire.executor.memory import available_bytes
from quire.executor.model_runner import ModelRunner
from quire.internal.v1 import executor_pb2, executor_pb2_grpc

logger = logging.getLogger(__name__)

# Plans that are read ahead of the one being computed; gRPC's flow control holds back the rest.
_PLANS_AHEAD: Final = 8

_Context = grpc.aio.ServicerContext[Any, Any]


class ExecutorService(executor_pb2_grpc.ExecutorServiceServicer):
    """Serves one ModelRunner to one scheduler."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._stream: _StepStream | None = None

    async def Describe(  # noqa: N802 - gRPC's name
        self, request: executor_pb2.DescribeExecutorRequest, context: _Context
    ) -> executor_pb2.ExecutorDescription:
        return _describe(self._runner)

    async def AttachKvPool(  # noqa: N802
        self, request: executor_pb2.AttachKvPoolRequest, context: _Context
    ) -> executor_pb2.AttachKvPoolResponse:
        """Ends the stream of the scheduler before this one, if it still stands."""
        async with rpc.errors_to_status(context):
            if self._stream is not None:
                self._stream.end(ServiceUnavailableError("another KV pool is being attached"))
                self._stream = None
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._worker, self._runner.attach, request)
            logger.info(
                "attached a KV pool of %d blocks of %d tokens, epoch %d",
                request.num_blocks,
                request.block_size,
                request.epoch,
            )
        return executor_pb2.AttachKvPoolResponse()

    async def RunSteps(  # noqa: N802
        self, request_iterator: AsyncIterator[executor_pb2.StepRequest], context: _Context
    ) -> AsyncIterator[executor_pb2.StepResult]:
        async with rpc.errors_to_status(context):
            if self._stream is not None:
                raise DuplicateRequestError("another RunSteps stream is open")
            self._stream = stream = _StepStream(self._runner, self._worker)
            try:
                async for result in stream.run(request_iterator):
                    yield result
            finally:
                stream.end(ServiceUnavailableError("the stream has ended"))
                if self._stream is stream:
                    # Its scheduler is gone, and with it whoever knows what the pool holds.
                    self._stream = None
                    self._worker.submit(self._runner.detach)

    async def close(self) -> None:
        """Ends the stream and the worker."""
        if self._stream is not None:
            self._stream.end(ServiceUnavailableError("the executor is shutting down"))
            self._stream = None
        await asyncio.to_thread(self._worker.shutdown)


class _StepStream:
    """One RunSteps call: plans in, results out, both in order."""

    def __init__(self, runner: ModelRunner, worker: ThreadPoolExecutor) -> None:
        self._runner = runner
        self._worker = worker
        # Results to come, in order; None once the peer has sent its last plan; an error ends the stream.
        self._results: asyncio.Queue[Future[executor_pb2.StepResult] | QuireError | None] = asyncio.Queue()
        self._ahead = asyncio.Semaphore(_PLANS_AHEAD)
        self._ended: QuireError | None = None

    async def run(self, requests: AsyncIterator[executor_pb2.StepRequest]) -> AsyncIterator[executor_pb2.StepResult]:
        """Raises the QuireError that ended it, be it a step's own or that of `end`."""
        reader = asyncio.create_task(self._read(requests))
        try:
            while (result := await self._results.get()) is not None:
                if isinstance(result, QuireError):
                    raise result
                yield await asyncio.wrap_future(result)
                self._ahead.release()
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader

    def end(self, reason: QuireError) -> None:
        """Plans that have not begun are not computed. The one that runs now cannot be stopped."""
        if self._ended is None:
            self._ended = reason
            self._results.put_nowait(reason)

    async def _read(self, requests: AsyncIterator[executor_pb2.StepRequest]) -> None:
        try:
            async for request in requests:
                await self._ahead.acquire()
                self._results.put_nowait(self._worker.submit(self._execute, request.plan))
            self._results.put_nowait(None)
        except Exception as error:
            self.end(ServiceUnavailableError(f"the stream of plans broke off: {error}"))

    def _execute(self, plan: executor_pb2.StepPlan) -> executor_pb2.StepResult:
        """On the worker thread. After a failure nothing more is computed: what follows builds on it."""
        if self._ended is not None:
            raise self._ended
        try:
            return self._runner.execute(plan)
        except Exception as error:
            logger.exception("step %d failed", plan.step)
            if isinstance(error, QuireError):
                self._ended = error
            else:
                self._ended = QuireError(f"step {plan.step} failed: {type(error).__name__}: {error}")
        raise self._ended


def _describe(runner: ModelRunner) -> executor_pb2.ExecutorDescription:
    model = runner.model
    config, group = model.config, model.cache_group
    return executor_pb2.ExecutorDescription(
        model=model.name,
        architecture=config.architecture,
        dtype=model.dtype_name,
        device=executor_pb2.DEVICE_CPU if model.device.type == "cpu" else executor_pb2.DEVICE_CUDA,
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
        weight_bytes=model.decoder.weights.num_bytes,
        available_bytes=available_bytes(model.device),
        fingerprint=model.fingerprint,
        length_independent_tokens=config.rotary.length_independent_tokens,
    )
