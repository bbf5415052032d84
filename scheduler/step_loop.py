"""Drives one executor: plans, sends, receives, with the next plan always on its way before a result arrives."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from quire.errors import QuireError
from quire.scheduler.executor_client import StepChannel
from quire.scheduler.outputs import OutputRouter
from quire.scheduler.scheduler import Scheduler
from quire.scheduler.step_plan import StepPlan

if TYPE_CHECKING:
    from quire.scheduler.tracing import SchedulerTracing  # imports OpenTelemetry

# One that is computed and one that waits for it: planning then costs the executor no time.
MAX_STEPS_IN_FLIGHT: Final = 2
# Steps that are remembered for inspection.
_NUM_RECORDS: Final = 4096


@dataclass(slots=True)
class StepRecord:
    """What happened when; times are CLOCK_MONOTONIC nanoseconds."""

    step: int
    executor: int
    num_prefill_tokens: int
    num_decode_tokens: int
    plan_sent_ns: int
    result_received_ns: int = 0


class Work:
    """Wakes the step loops when there may be something to plan."""

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    def notify(self) -> None:
        """Something was submitted or ended: every loop that waits looks again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():  # its loop may have been cancelled
                waiter.set_result(None)

    async def wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter


class StepLoop:
    """The loop of one lane."""

    def __init__(
        self,
        lane: int,
        scheduler: Scheduler,
        channel: StepChannel,
        router: OutputRouter,
        work: Work,
        epoch: int,
        tracing: SchedulerTracing | None = None,
    ) -> None:
        self.lane = lane
        self._scheduler = scheduler
        self._channel = channel
        self._router = router
        self._work = work
        self._epoch = epoch
        self._tracing = tracing
        self._stops = False
        self._in_flight: deque[tuple[StepPlan, StepRecord]] = deque()
        self.records: deque[StepRecord] = deque(maxlen=_NUM_RECORDS)
        # Are told of every step whose result has been taken in; must be quick and must not raise.
        self.observers: list[Callable[[StepRecord], None]] = []

    @property
    def is_busy(self) -> bool:
        """Whether the executor owes results."""
        return bool(self._in_flight)

    def stop(self) -> None:
        """Has `run` return once the steps in flight have ended."""
        self._stops = True
        self._work.notify()

    def abandon(self) -> StepPlan | None:
        """Forgets the steps in flight; returns the first of them."""
        plans = [plan for plan, _ in self._in_flight]
        self._in_flight.clear()
        return plans[0] if plans else None

    def connect(self, channel: StepChannel) -> None:
        """The next `run` goes on with another channel."""
        assert not self._in_flight, "steps are in flight on the old channel"
        self._channel, self._stops = channel, False

    async def run(self) -> None:
        """Runs until `stop`. Raises QuireError when the executor fails or is gone."""
        while self._in_flight or not self._stops:
            plan = None if self._stops else self._scheduler.schedule(self.lane)
            if plan is not None:
                await self._send(plan)
            if not self._in_flight:
                if not self._scheduler.has_work:
                    self._scheduler.check_integrity()
                await self._work.wait()
            elif plan is None or len(self._in_flight) == MAX_STEPS_IN_FLIGHT:
                await self._receive()

    async def _send(self, plan: StepPlan) -> None:
        record = StepRecord(plan.step, self.lane, plan.num_prefill_tokens, plan.num_decode_tokens, 0)
        self._in_flight.append((plan, record))
        self.records.append(record)
        now = time.monotonic_ns()
        await self._channel.send(plan.to_proto(self._epoch))
        record.plan_sent_ns = time.monotonic_ns()
        for chunk in plan.chunks:
            request = plan.sequences[chunk.row].request
            request.first_planned_ns = request.first_planned_ns or now
        if self._tracing is not None and not self._tracing.is_idle:
            self._tracing.planned(plan, now)

    async def _receive(self) -> None:
        result = await self._channel.receive()
        plan, record = self._in_flight[0]
        if (result.epoch, result.step) != (self._epoch, plan.step):
            raise QuireError(f"an executor answered step {result.step} where step {plan.step} was due")
        record.result_received_ns = time.monotonic_ns()
        events = self._scheduler.update_from_output(plan, result)
        self._in_flight.popleft()
        self._router.publish(events)
        if self._tracing is not None and not self._tracing.is_idle:
            self._tracing.computed(plan, record, result, events)
        for observe in self.observers:
            observe(record)
        # Blocks and slots may be free now that another executor's sequences wait for.
        self._work.notify()
