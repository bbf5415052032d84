"""Steps in, results out, in order: over gRPC, or through shared memory.

Either way one worker thread runs everything that touches the model. A gRPC stream hands it plans as soon as they
are read, so that the next step starts when the one before it ends. Rings it serves itself: it sleeps until a plan
is written, computes, and writes the result, and the event loop has no part in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, NoReturn, TypeAlias

from google.protobuf.message import DecodeError

from quire.errors import QuireError, RingError, ServiceUnavailableError
from quire.internal.v1 import executor_pb2
from quire.ring import RingReader, RingWriter, StepRings
from quire.step_counters import StepCounters

logger = logging.getLogger(__name__)

# Plans that a gRPC stream reads ahead of the one being computed; gRPC's flow control holds back the rest.
_PLANS_AHEAD: Final = 8

Execute: TypeAlias = Callable[[executor_pb2.StepPlan, StepCounters], executor_pb2.StepResult]


class StepStream(ABC):
    """What both ways share: a stream ends once, for one reason, and computes nothing after that."""

    def __init__(self, execute: Execute, worker: ThreadPoolExecutor) -> None:
        """`execute` is called on the worker's one thread."""
        self._execute_step = execute
        self._worker = worker
        self._ended: QuireError | None = None
        # Whether there may have been a step; not so where rings could not be had.
        self.has_begun = False
        # In the rings while these are served, else in memory of our own.
        self.counters = StepCounters.private()

    def end(self, reason: QuireError) -> None:
        """Plans that have not begun are not computed. The one that runs now cannot be stopped."""
        if self._ended is None:
            self._ended = reason
            self._wake(reason)

    @abstractmethod
    def _wake(self, reason: QuireError) -> None:
        """Makes whoever waits see the end."""

    def _execute(self, plan: executor_pb2.StepPlan) -> executor_pb2.StepResult:
        """On the worker thread. After a failure nothing more is computed: what follows builds on it."""
        if self._ended is not None:
            raise self._ended
        self.counters.count_plan()
        try:
            return self._execute_step(plan, self.counters)
        except Exception as error:
            logger.exception("step %d failed", plan.step)
            if isinstance(error, QuireError):
                self._ended = error
            else:
                self._ended = QuireError(f"step {plan.step} failed: {type(error).__name__}: {error}")
        raise self._ended


class GrpcStepStream(StepStream):
    """One RunSteps call."""

    def __init__(self, execute: Execute, worker: ThreadPoolExecutor) -> None:
        super().__init__(execute, worker)
        # Results to come, in order; None once the peer has sent its last plan; an error ends the stream.
        self._results: asyncio.Queue[Future[executor_pb2.StepResult] | QuireError | None] = asyncio.Queue()
        self._ahead = asyncio.Semaphore(_PLANS_AHEAD)

    async def run(self, requests: AsyncIterator[executor_pb2.StepRequest]) -> AsyncIterator[executor_pb2.StepResult]:
        """Raises the QuireError that ended it, be it a step's own or that of `end`."""
        self.has_begun = True
        reader = asyncio.create_task(self._read(requests))
        try:
            while (result := await self._results.get()) is not None:
                if isinstance(result, QuireError):
                    raise result
                yield await asyncio.wrap_future(result)
                self.counters.count_result()
                self._ahead.release()
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader

    def _wake(self, reason: QuireError) -> None:
        self._results.put_nowait(reason)

    async def _read(self, requests: AsyncIterator[executor_pb2.StepRequest]) -> None:
        try:
            async for request in requests:
                await self._ahead.acquire()
                self._results.put_nowait(self._worker.submit(self._execute, request.plan))
            self._results.put_nowait(None)
        except Exception as error:
            self.end(ServiceUnavailableError(f"the stream of plans broke off: {error}"))


class RingStepStream(StepStream):
    """One AttachRings call. It keeps the worker thread for as long as the rings are served."""

    # Wakes the worker to see the end. Made, used and closed in the event loop.
    _stop_fd: int | None = None

    async def run(self, address: Path) -> AsyncIterator[executor_pb2.AttachRingsResponse]:
        """Yields once, when the rings are served. Raises the QuireError that ends it."""
        loop = asyncio.get_running_loop()
        attached = loop.create_future()
        self._stop_fd = stop_fd = os.eventfd(0, os.EFD_CLOEXEC)

        def attach_and_serve() -> None:
            with StepRings.attach(address) as rings:
                self.counters = rings.counters
                loop.call_soon_threadsafe(attached.set_result, None)
                try:
                    self._serve(rings, stop_fd)
                finally:
                    self.counters = StepCounters.private()  # theirs end with the rings

        serving = loop.run_in_executor(self._worker, attach_and_serve)
        serving.add_done_callback(self._on_served)
        await asyncio.wait((attached, serving), return_when=asyncio.FIRST_COMPLETED)
        if attached.done():
            self.has_begun = True
            yield executor_pb2.AttachRingsResponse()
        # The thread outlives a call that is cancelled, by at most the step that it computes.
        await asyncio.shield(serving)

    def _wake(self, reason: QuireError) -> None:
        if self._stop_fd is not None:
            os.eventfd_write(self._stop_fd, 1)

    def _on_served(self, serving: asyncio.Future[None]) -> None:
        assert self._stop_fd is not None
        os.close(self._stop_fd)
        self._stop_fd = None
        # A call that was cancelled does not ask for it.
        serving.exception()

    def _serve(self, rings: StepRings, stop_fd: int) -> NoReturn:
        """On the worker thread, until the stream ends or a step fails: raises why."""
        plans, results = RingReader(rings.plans), RingWriter(rings.results)
        while True:
            self._wait(plans.written_fd, stop_fd)
            for message in plans.receive():
                result = self._execute(_parse(message))
                sent = results.send(result.SerializeToString())
                while not sent:
                    self._wait(results.freed_fd, stop_fd)
                    sent = results.resume()
                self.counters.count_result()

    def _wait(self, descriptor: int, stop_fd: int) -> None:
        """Sleeps until the descriptor is readable. Raises the reason if the stream ends first.

        No deadline: an idle executor sleeps, and the end of its scheduler ends the call and with it the stream.
        """
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(stop_fd, select.POLLIN)
        poll.poll()
        if self._ended is not None:
            raise self._ended


def _parse(message: bytes) -> executor_pb2.StepPlan:
    try:
        return executor_pb2.StepPlan.FromString(message)
    except DecodeError as error:
        raise RingError(f"a plan in the ring is damaged: {error}") from error
