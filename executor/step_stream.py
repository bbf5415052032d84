"""Steps in, results out, in order: over gRPC, or through shared memory.

Either way one worker thread runs everything that touches the model, and keeps to a stream until that ends
(`step_serving.py`). Rings it serves itself: it sleeps until a plan is written, and the event loop has no part in it.
A gRPC stream's plans and results pass between it and the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from quire.errors import QuireError, RingError, ServiceUnavailableError
from quire.executor.step_serving import StepRunner, StepStream
from quire.internal.v1 import executor_pb2
from quire.ring import RingReader, RingWriter, StepRings
from quire.step_counters import StepCounters

# Plans that a gRPC stream reads ahead of the one being computed; gRPC's flow control holds back the rest.
_PLANS_AHEAD: Final = 8


class GrpcStepStream(StepStream):
    """One RunSteps call."""

    _loop: asyncio.AbstractEventLoop

    def __init__(self, runner: StepRunner, worker: ThreadPoolExecutor) -> None:
        super().__init__(runner, worker)
        # To the worker: plans, and None behind the last. Appending and taking are atomic.
        self._plans: deque[executor_pb2.StepPlan | None] = deque()
        self._plans_fd = -1
        # From it: results, in order; None behind the last, or what ended the stream.
        self._results: asyncio.Queue[executor_pb2.StepResult | BaseException | None] = asyncio.Queue()
        self._ahead = asyncio.Semaphore(_PLANS_AHEAD)

    async def run(self, requests: AsyncIterator[executor_pb2.StepRequest]) -> AsyncIterator[executor_pb2.StepResult]:
        """Raises the QuireError that ended it, be it a step's own or that of `end`."""
        self.has_begun = True
        self._loop = asyncio.get_running_loop()
        self._plans_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._start(lambda: self._serve(self._plans_fd)).add_done_callback(self._on_served)
        reader = asyncio.create_task(self._read(requests))
        try:
            while (result := await self._results.get()) is not None:
                if isinstance(result, BaseException):
                    raise result
                yield result
                self.counters.count_result()
                self._ahead.release()
        finally:
            self.end(ServiceUnavailableError("the stream has ended"))
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader

    def _wake(self, reason: QuireError) -> None:
        super()._wake(reason)
        self._results.put_nowait(reason)

    def _on_served(self, serving: asyncio.Future[None]) -> None:
        os.close(self._plans_fd)
        self._plans_fd = -1
        self._results.put_nowait(serving.exception())

    async def _read(self, requests: AsyncIterator[executor_pb2.StepRequest]) -> None:
        try:
            async for request in requests:
                await self._ahead.acquire()
                self._give(request.plan)
            self._give(None)
        except Exception as error:
            self.end(ServiceUnavailableError(f"the stream of plans broke off: {error}"))

    def _give(self, plan: executor_pb2.StepPlan | None) -> None:
        self._plans.append(plan)
        if self._plans_fd >= 0:  # the worker has not gone
            os.eventfd_write(self._plans_fd, 1)

    def _receive(self) -> Iterator[executor_pb2.StepPlan | None]:
        os.eventfd_read(self._plans_fd)
        while self._plans:
            yield self._plans.popleft()

    def _send(self, result: executor_pb2.StepResult) -> None:
        self._loop.call_soon_threadsafe(self._results.put_nowait, result)


class RingStepStream(StepStream):
    """One AttachRings call."""

    # Made by the worker, once it has the rings.
    _plans: RingReader
    _results: RingWriter

    async def run(self, address: Path) -> AsyncIterator[executor_pb2.AttachRingsResponse]:
        """Yields once, when the rings are served. Raises the QuireError that ends it."""
        loop = asyncio.get_running_loop()
        attached = loop.create_future()

        def attach_and_serve() -> None:
            with StepRings.attach(address) as rings:
                self.counters = rings.counters
                self._plans, self._results = RingReader(rings.plans), RingWriter(rings.results)
                loop.call_soon_threadsafe(attached.set_result, None)
                try:
                    self._serve(self._plans.written_fd)
                finally:
                    self.counters = StepCounters.private()  # theirs end with the rings

        serving = self._start(attach_and_serve)
        await asyncio.wait((attached, serving), return_when=asyncio.FIRST_COMPLETED)
        if attached.done():
            self.has_begun = True
            yield executor_pb2.AttachRingsResponse()
        # The thread outlives a call that is cancelled, by at most the steps that it computes.
        await asyncio.shield(serving)

    def _receive(self) -> Sequence[executor_pb2.StepPlan]:
        return [_parse(message) for message in self._plans.receive()]

    def _send(self, result: executor_pb2.StepResult) -> None:
        sent = self._results.send(result.SerializeToString())
        while not sent:
            self._wait_for([self._results.freed_fd])
            sent = self._results.resume()
        self.counters.count_result()


def _parse(message: bytes) -> executor_pb2.StepPlan:
    try:
        return executor_pb2.StepPlan.FromString(message)
    except DecodeError as error:
        raise RingError(f"a plan in the ring is damaged: {error}") from error
