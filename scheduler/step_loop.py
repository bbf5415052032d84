"""Drives one executor: plans, sends, receives, with the next plan always on its way before a result arrives."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

from quire.errors import QuireError
from quire.scheduler.executor_client import StepChannel
from quire.scheduler.outputs import OutputRouter
from quire.scheduler.scheduler import Scheduler
from quire.scheduler.step_plan import StepPlan

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
        self, lane: int, scheduler: Scheduler, channel: StepChannel, router: OutputRouter, work: Work, epoch: int
    ) -> None:
        self._lane = lane
        self._scheduler = scheduler
        self._channel = channel
        self._router = router
        self._work = work
        self._epoch = epoch
        self._in_flight: deque[tuple[StepPlan, StepRecord]] = deque()
        self.records: deque[StepRecord] = deque(maxlen=_NUM_RECORDS)

    async def run(self) -> None:
        """Runs until it is cancelled. Raises QuireError when the executor fails or is gone."""
        while True:
            plan = self._scheduler.schedule(self._lane)
            if plan is not None:
                await self._send(plan)
            if not self._in_flight:
                if not self._scheduler.has_work:
                    self._scheduler.check_integrity()
                await self._work.wait()
            elif plan is None or len(self._in_flight) == MAX_STEPS_IN_FLIGHT:
                await self._receive()

    async def _send(self, plan: StepPlan) -> None:
        record = StepRecord(plan.step, self._lane, plan.num_prefill_tokens, plan.num_decode_tokens, 0)
        await self._channel.send(plan.to_proto(self._epoch))
        record.plan_sent_ns = time.monotonic_ns()
        self._in_flight.append((plan, record))
        self.records.append(record)

    async def _receive(self) -> None:
        result = await self._channel.receive()
        plan, record = self._in_flight.popleft()
        if (result.epoch, result.step) != (self._epoch, plan.step):
            raise QuireError(f"an executor answered step {result.step} where step {plan.step} was due")
        record.result_received_ns = time.monotonic_ns()
        self._router.publish(self._scheduler.update_from_output(plan, result))
        # Blocks and slots may be free now that another executor's sequences wait for.
        self._work.notify()
