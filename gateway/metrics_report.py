"""Brings what a gateway has counted to the scheduler, once: every second, when it is asked, and at the end.

Increments leave under a number and are sent again, under the same one, until they are acknowledged. So a lost answer
counts nothing twice, and a scheduler that is new gets what its predecessor did not acknowledge.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Final

from quire.errors import QuireError, ServiceUnavailableError
from quire.gateway.connection import UNREACHED
from quire.gateway.metrics import RequestMetrics
from quire.gateway.scheduler_client import SchedulerClient
from quire.internal.v1 import metrics_pb2
from quire.rpc import errors_from_status

logger = logging.getLogger(__name__)

_INTERVAL_S: Final = 1.0
# Of a report. Prometheus gives a scrape 10 s.
_TIMEOUT_S: Final = 5.0
# Of the last report: nobody waits longer for a gateway's end.
_LAST_TIMEOUT_S: Final = 1.0


class MetricsReporter:
    """One gateway's reports, one at a time."""

    def __init__(self, counts: RequestMetrics, scheduler: SchedulerClient) -> None:
        self.counts = counts
        self._scheduler = scheduler
        self._number = 0
        # Sent, and perhaps taken in.
        self._unacknowledged: metrics_pb2.ReportMetricsRequest | None = None
        self._is_reporting = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Reports every second from now on."""
        self._task = asyncio.create_task(self._report_always(), name="metrics")

    async def close(self) -> None:
        """Reports what is left, if the scheduler takes it within a second."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            await self.report(_LAST_TIMEOUT_S)
        except QuireError as error:
            logger.info("the last second's metrics are lost: %s", error.message)

    async def report(self, timeout: float = _TIMEOUT_S) -> None:
        """Sends what there is. Raises QuireError if the scheduler has not taken it in `timeout` seconds."""
        async with self._turn(timeout):
            while (report := self._next()) is not None:
                await self._scheduler.stub.ReportMetrics(report)
                self._unacknowledged = None

    async def collect(self, *, with_tenants: bool, timeout: float = _TIMEOUT_S) -> metrics_pb2.MetricValues:
        """The figures of the whole server, with all that this gateway has counted until now.

        Raises QuireError if the scheduler is away, or does not answer in `timeout` seconds.
        """
        async with self._turn(timeout):
            if self._unacknowledged is not None:  # older than what is to come
                await self._scheduler.stub.ReportMetrics(self._unacknowledged)
                self._unacknowledged = None
            request = metrics_pb2.CollectMetricsRequest(report=self._next(), with_tenants=with_tenants)
            response = await self._scheduler.stub.CollectMetrics(request)
            self._unacknowledged = None
        return response.values

    @contextlib.asynccontextmanager
    async def _turn(self, timeout: float) -> AsyncIterator[None]:
        """Others wait. Raises ServiceUnavailableError where the scheduler is away, and what it answers."""
        try:
            async with asyncio.timeout(timeout), self._is_reporting:
                with errors_from_status("the scheduler"):
                    yield
        except TimeoutError as error:
            raise ServiceUnavailableError(f"the scheduler has not answered in {timeout:g} s") from error
        except UNREACHED as error:
            raise ServiceUnavailableError(error.message) from error

    def _next(self) -> metrics_pb2.ReportMetricsRequest | None:
        """What is to be sent, if anything: first of all what was not acknowledged."""
        if self._unacknowledged is None and (increments := self.counts.take()) is not None:
            self._number += 1
            self._unacknowledged = metrics_pb2.ReportMetricsRequest(
                gateway_id=self._scheduler.gateway_id, number=self._number, increments=increments
            )
        return self._unacknowledged

    async def _report_always(self) -> None:
        complaint = ""
        while True:
            await asyncio.sleep(_INTERVAL_S)
            try:
                await self.report()
            except ServiceUnavailableError as error:  # others say so already
                logger.debug("metrics wait for the scheduler: %s", error.message)
            except QuireError as error:
                if error.message != complaint:
                    logger.warning("the scheduler does not take metrics: %s", error.message)
                complaint = error.message
