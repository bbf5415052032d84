"""What the streams of steps share: the loop of the worker thread, and that a stream ends once, for one reason.

Plans are launched as long as the runner takes more in flight, and a result is sent as soon as its step and all before
it are over. On a CPU a step is over when it was launched, so that its result goes out before the next plan is begun.
The thread sleeps in one place, where plans, the end of the stream and the device wake it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

from quire.errors import QuireError
from quire.executor.pending_step import PendingStep
from quire.internal.v1 import executor_pb2
from quire.step_counters import StepCounters

logger = logging.getLogger(__name__)

# A device that has failed need not say so: while steps are in flight it is looked at this often, in milliseconds.
_LOOK_MS: Final = 1000


class StepRunner(Protocol):
    """What computes steps, on the worker's one thread: ModelRunner, whose docstrings say more."""

    @property
    def max_in_flight(self) -> int: ...

    @property
    def completion_fd(self) -> int | None: ...

    def launch(self, plan: executor_pb2.StepPlan, counters: StepCounters) -> PendingStep: ...

    def drain(self) -> None: ...

    def use_pause(self, *, idle: bool) -> bool: ...


class StepStream(ABC):
    """One call that carries steps."""

    def __init__(self, runner: StepRunner, worker: ThreadPoolExecutor) -> None:
        self._runner = runner
        self._worker = worker
        self._ended: QuireError | None = None
        # Wakes the worker to see the end, while it serves. Made, written and closed in the event loop.
        self._stop_fd: int | None = None
        # Whether there may have been a step; not so where rings could not be had.
        self.has_begun = False
        # In the rings while these are served, else in memory of our own.
        self.counters = StepCounters.private()
        # The worker's: plans that wait, and the numbers of steps that were launched and are not answered.
        self._waiting: deque[executor_pb2.StepPlan] = deque()
        self._in_flight: deque[tuple[int, PendingStep]] = deque()
        self._has_all_plans = False

    def end(self, reason: QuireError) -> None:
        """Plans that have not begun are not computed. Those that run now cannot be stopped."""
        if self._ended is None:
            self._ended = reason
            self._wake(reason)

    def _wake(self, reason: QuireError) -> None:
        """Makes whoever waits see the end."""
        if self._stop_fd is not None:
            os.eventfd_write(self._stop_fd, 1)

    def _start(self, serve: Callable[[], None]) -> asyncio.Future[None]:
        """Has the worker run `serve`, which calls `_serve`."""
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
        serving = asyncio.get_running_loop().run_in_executor(self._worker, serve)
        serving.add_done_callback(self._close)
        return serving

    def _close(self, serving: asyncio.Future[None]) -> None:
        assert self._stop_fd is not None
        os.close(self._stop_fd)
        self._stop_fd = None
        # A call that was cancelled does not ask for it.
        serving.exception()

    # On the worker thread.

    @abstractmethod
    def _receive(self) -> Iterable[executor_pb2.StepPlan | None]:
        """Plans that have arrived; None behind the last there will be."""

    @abstractmethod
    def _send(self, result: executor_pb2.StepResult) -> None:
        """Takes a result to the scheduler."""

    def _serve(self, plans_fd: int) -> None:
        """Until there are no more plans. Raises why it ended before; nothing is in flight any more in either case.

        `plans_fd` is readable when there is something to receive.
        """
        try:
            while self._waiting or self._in_flight or not self._has_all_plans:
                if self._waiting and self._has_room:
                    self._launch(self._waiting.popleft())
                else:
                    self._sleep(plans_fd)
                self._send_results()
        finally:
            if self._in_flight:
                self._runner.drain()
                self._in_flight.clear()

    @property
    def _has_room(self) -> bool:
        return len(self._in_flight) < self._runner.max_in_flight

    def _launch(self, plan: executor_pb2.StepPlan) -> None:
        if self._ended is not None:
            raise self._ended
        self.counters.count_plan()
        try:
            step = self._runner.launch(plan, self.counters)
        except Exception as error:
            # What was launched before it is still answered.
            while self._in_flight:
                self._wait_for([self._runner.completion_fd], _LOOK_MS)
                self._send_results()
            raise self._failed(plan.step, error) from error
        self._in_flight.append((plan.step, step))

    def _send_results(self) -> None:
        """Of the steps that are over."""
        while self._in_flight:
            number, step = self._in_flight[0]
            try:
                if not step.is_done:
                    return
                result = step.result()
            except Exception as error:
                raise self._failed(number, error) from error
            self._in_flight.popleft()
            self._send(result)

    def _failed(self, number: int, error: Exception) -> QuireError:
        """After a failure nothing more is computed: what follows builds on it."""
        if self._ended is None:
            logger.error("step %d failed", number, exc_info=error)
            if isinstance(error, QuireError):
                self._ended = error
            else:
                self._ended = QuireError(f"step {number} failed: {type(error).__name__}: {error}")
        return self._ended

    def _sleep(self, plans_fd: int) -> None:
        """Until plans, the device or the end of the stream wake it; takes in plans that have come."""
        has_paused = self._runner.use_pause(idle=not self._in_flight)
        wants_plans = self._has_room and not self._has_all_plans
        descriptors: list[int | None] = [plans_fd] if wants_plans else []
        timeout_ms = 0 if has_paused else None
        if self._in_flight:
            descriptors.append(self._runner.completion_fd)
            timeout_ms = 0 if has_paused else _LOOK_MS
        woken = self._wait_for(descriptors, timeout_ms)
        if wants_plans and plans_fd in woken:
            for plan in self._receive():
                if plan is None:
                    self._has_all_plans = True
                else:
                    self._waiting.append(plan)

    def _wait_for(self, descriptors: Sequence[int | None], timeout_ms: int | None = None) -> list[int]:
        """Those that are readable, once one of them is or the time is over. Raises the reason if the stream has ended.

        Without a timeout there is no deadline: an idle executor sleeps, and the end of its scheduler ends the call
        and with it the stream.
        """
        poll = select.poll()
        for descriptor in (*descriptors, self._stop_fd):
            if descriptor is not None:
                poll.register(descriptor, select.POLLIN)
        woken = [descriptor for descriptor, _ in poll.poll(timeout_ms)]
        if self._ended is not None:
            raise self._ended
        completion_fd = self._runner.completion_fd
        if completion_fd is not None and completion_fd in woken:
            os.eventfd_read(completion_fd)
        return woken
