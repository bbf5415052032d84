"""A lane: the step loop of one executor, through the death, the hanging and the replacement of that executor."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from quire.errors import QuireError, ServiceUnavailableError
from quire.internal.v1 import executor_pb2, scheduler_pb2
from quire.process import first_of
from quire.scheduler.executor_client import ExecutorClient
from quire.scheduler.executor_link import ExecutorConnector, ExecutorLink, ForeignExecutorError
from quire.scheduler.outputs import OutputRouter, StepEvents
from quire.scheduler.scheduler import Scheduler
from quire.scheduler.step_loop import StepLoop, Work
from quire.scheduler.watchdog import Watchdog

if TYPE_CHECKING:
    from quire.scheduler.tracing import SchedulerTracing  # imports OpenTelemetry

logger = logging.getLogger(__name__)

# Between two attempts to connect an executor that is there and refuses, or that comes and goes.
_RETRY_S: Final = 0.2


class Lane:
    """Keeps the place of one executor filled."""

    def __init__(
        self,
        link: ExecutorLink,
        connector: ExecutorConnector,
        steps: StepLoop,
        scheduler: Scheduler,
        router: OutputRouter,
        work: Work,
        watchdog: Watchdog,
        tracing: SchedulerTracing | None = None,
    ) -> None:
        """Takes over the link, whose channel `steps` use."""
        self.steps = steps
        self._link = link
        self._connector = connector
        self._scheduler = scheduler
        self._router = router
        self._work = work
        self._watchdog = watchdog
        self._tracing = tracing
        # Of a replacement under way: the new executor, once it is connected, and who waits for the old one's end.
        self._successor: asyncio.Future[ExecutorLink] = asyncio.get_running_loop().create_future()
        self._replaced: asyncio.Future[None] | None = None

    @property
    def description(self) -> executor_pb2.ExecutorDescription:
        """The executor that serves the lane, or served it last."""
        return self._link.description

    async def run(self) -> None:
        """Runs until it is cancelled. Raises QuireError when no executor can have the lane any more."""
        while True:
            try:
                await self._serve()
            except QuireError as failure:
                await self._lose(failure)
                link = await first_of(self._reconnect(), self._wait_for_successor())
            else:
                self._scheduler.vacate_lane(self.steps.lane)
                self._trace("executor replaced")
                link = self._successor.result()
            await self._switch(link)

    async def replace(self, address: str) -> None:
        """Gives the lane to the executor at `address`; returns once the old one has nothing left to do.

        Raises QuireError if the new one cannot be had: the old one, which has worked on meanwhile, keeps the lane.
        """
        if self._replaced is not None:
            raise ServiceUnavailableError(f"{self._link.client.name} is being replaced already")
        replaced = self._replaced = asyncio.get_running_loop().create_future()
        client = ExecutorClient(self.steps.lane, address)
        try:
            self._successor.set_result(await self._connector.connect(client))
        except BaseException:
            self._replaced = None
            await client.close()
            raise
        self.steps.stop()
        await replaced

    async def close(self) -> None:
        """Lets go of the executor, which lives on."""
        for link in [self._link, *([self._successor.result()] if self._successor.done() else [])]:
            await link.close()
            await link.client.close()

    async def _serve(self) -> None:
        """Has the executor compute. Returns when its successor is there and no step is in flight."""
        if self._successor.done():  # it came while the lane was lost
            self.steps.stop()
        watching = self._watchdog.watch(lambda: self.steps.is_busy, self._link.channel.progress)
        await first_of(self.steps.run(), watching)

    async def _lose(self, failure: QuireError) -> None:
        """Makes sure that the executor is dead. Then what it had is queued, for other executors too."""
        logger.warning("%s is lost: %s", self._link.client.name, failure.message)
        await self._connector.fence(self._link)
        events = self._scheduler.lose_lane(self.steps.lane, self.steps.abandon())
        self._trace(f"executor lost: {failure.message}", events)
        self._router.publish(events)
        self._announce()
        self._work.notify()

    async def _reconnect(self) -> ExecutorLink:
        """The next executor at the same address, for as long as that takes: whoever starts it decides when to give up.

        Raises ForeignExecutorError.
        """
        refusal = ""
        while True:
            try:
                return await self._connector.connect(self._link.client)
            except ForeignExecutorError:
                raise
            except QuireError as error:
                if error.message != refusal:
                    logger.warning("%s is not back: %s", self._link.client.name, error.message)
                refusal = error.message
            await asyncio.sleep(_RETRY_S)

    async def _wait_for_successor(self) -> ExecutorLink:
        return await asyncio.shield(self._successor)

    async def _switch(self, link: ExecutorLink) -> None:
        """From an executor that has nothing in flight to one that knows nothing."""
        old, self._link = self._link, link
        await old.close()
        if old.client is not link.client:
            await old.client.close()
        if not link.has_content:
            self._scheduler.kv_cache.forget_all()
        self.steps.connect(link.channel)
        self._scheduler.regain_lane(self.steps.lane)
        logger.info("%s serves, process %d", link.client.name, link.description.pid)
        if self._replaced is not None and self._successor.done() and self._successor.result() is link:
            self._successor = asyncio.get_running_loop().create_future()
            if not self._replaced.done():  # the caller may have gone
                self._replaced.set_result(None)
            self._replaced = None
        self._announce()

    def _trace(self, what: str, events: StepEvents | None = None) -> None:
        """Tells of sequences that have lost their executor."""
        if self._tracing is not None:
            now_ns = time.monotonic_ns()
            self._tracing.fail(events.failed if events else (), now_ns)
            self._tracing.look(what, now_ns)

    def _announce(self) -> None:
        self._router.announce(scheduler_state(self._scheduler))


def scheduler_state(scheduler: Scheduler) -> scheduler_pb2.SchedulerState:
    """What gateways are told of the executors."""
    num_executors = len(scheduler.kv_cache.lanes)
    return scheduler_pb2.SchedulerState(num_executors=num_executors, num_live_executors=len(scheduler.live_lanes))
