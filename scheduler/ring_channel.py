"""Steps through shared memory: plans go into one ring, results come out of the other.

A gRPC call, AttachRings, stays open for as long as the executor serves the rings. It carries no steps. Its end says
that they are served no longer, and its status why: so a failed step, a dead executor and a silent one are noticed
exactly as they are with a gRPC stream of steps.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from quire.errors import QuireError, RingError, ServiceUnavailableError
from quire.internal.v1 import executor_pb2
from quire.ring import RingReader, RingWriter, StepRings
from quire.rpc import errors_from_status


class RingStepChannel:
    """A `StepChannel` over rings that an executor serves."""

    def __init__(self, name: str, rings: StepRings, call: Any) -> None:
        """Takes over the rings and their AttachRings call, whose first response has come."""
        self._name = name
        self._rings = rings
        self._call = call
        self._plans = RingWriter(rings.plans)
        self._results = RingReader(rings.results)
        # Received but not asked for yet: no more than there are steps in flight.
        self._received: deque[bytes] = deque()
        self._failure: QuireError | None = None
        # Who waits for a result or for room; any news wakes them all, and each looks for itself.
        self._waiters: list[asyncio.Future[None]] = []
        self._loop = asyncio.get_running_loop()
        # Always, so that an executor with a large result is never kept from taking the plan that we wait to write.
        self._loop.add_reader(self._results.written_fd, self._take_results)
        self._watching = self._loop.create_task(self._watch())

    async def send(self, plan: executor_pb2.StepPlan) -> None:
        if self._failure is not None:
            raise self._failure
        if not self._plans.send(plan.SerializeToString()):
            await self._send_rest()

    async def receive(self) -> executor_pb2.StepResult:
        while not self._received:
            await self._news()
        try:
            return executor_pb2.StepResult.FromString(self._received.popleft())
        except DecodeError as error:
            raise RingError(f"{self._name} sent a damaged result: {error}") from error

    async def progress(self) -> int:
        return self._rings.counters.progress

    async def close(self) -> None:
        """Ends the call; the executor finishes the step that it has begun."""
        self._loop.remove_reader(self._results.written_fd)
        self._call.cancel()
        self._watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watching
        self._rings.close()

    async def _send_rest(self) -> None:
        """Waits for the executor to make room: at the latest when it has finished the step it has begun."""
        self._loop.add_reader(self._plans.freed_fd, self._wake)
        try:
            while not self._plans.resume():
                await self._news()
        finally:
            self._loop.remove_reader(self._plans.freed_fd)

    def _take_results(self) -> None:
        try:
            self._received += self._results.receive()
        except RingError as error:
            self._failure = self._failure or error
        self._wake()

    async def _watch(self) -> None:
        """Waits for the end of the call. What was computed before it is still delivered."""
        try:
            with errors_from_status(self._name):
                response = await self._call.read()
            ended = "closed its rings" if response is grpc.aio.EOF else "spoke out of turn"
            failure: QuireError = ServiceUnavailableError(f"{self._name} {ended}")
        except QuireError as error:
            failure = error
        self._take_results()
        self._failure = self._failure or failure
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _news(self) -> None:
        """Returns when something has happened. Raises the failure once there is one."""
        if self._failure is not None:
            raise self._failure
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            self._waiters.remove(waiter)
