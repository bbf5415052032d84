"""The scheduler's side of an executor: describe, attach the pool, exchange steps.

`StepChannel` is all that the step loop knows: a gRPC stream, or shared memory (`ring_channel.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Any, Final, Protocol

import grpc

from quire.config import StepTransport
from quire.errors import DeadlineError, QuireError, RingError, ServiceUnavailableError, StartupError, UnreachedError
from quire.handover import offered
from quire.internal.v1 import executor_pb2, executor_pb2_grpc
from quire.peers import Peers
from quire.ring import StepRings
from quire.rpc import errors_from_status, open_channel
from quire.scheduler.ring_channel import RingStepChannel

logger = logging.getLogger(__name__)


# For an answer that takes no time.
_PROGRESS_TIMEOUT_S: Final = 5.0


class StepChannel(Protocol):
    """Carries steps to one executor and results back, in order. Not for concurrent senders or receivers."""

    async def send(self, plan: executor_pb2.StepPlan) -> None:
        """Hands a plan over; returns once it is on its way. Raises QuireError if the executor is gone."""

    async def receive(self) -> executor_pb2.StepResult:
        """The next result. Raises QuireError if the executor failed or is gone."""

    async def progress(self) -> int:
        """A number that changes whenever the executor gets ahead, in the middle of a step too."""

    async def close(self) -> None:
        """Ends the channel; the executor finishes the step that it has begun."""


class GrpcStepChannel:
    """Steps over the bidirectional stream of ExecutorService."""

    def __init__(self, name: str, stub: executor_pb2_grpc.ExecutorServiceAsyncStub) -> None:
        self._name = name
        self._stub = stub
        self._call: Any = stub.RunSteps()
        # The latest that was heard of.
        self._progress = 0

    async def send(self, plan: executor_pb2.StepPlan) -> None:
        with errors_from_status(self._name):
            try:
                await self._call.write(executor_pb2.StepRequest(plan=plan))
            except asyncio.InvalidStateError as error:  # the stream has ended
                raise await self._reason() from error

    async def receive(self) -> executor_pb2.StepResult:
        with errors_from_status(self._name):
            result = await self._call.read()
        if result is grpc.aio.EOF:
            raise await self._reason()
        assert isinstance(result, executor_pb2.StepResult)
        return result

    async def progress(self) -> int:
        self._progress = await _ask_progress(self._stub, self._progress)
        return self._progress

    async def close(self) -> None:
        self._call.cancel()

    async def _reason(self) -> QuireError:
        """Why the stream has ended."""
        details = await self._call.details()
        return ServiceUnavailableError(f"{self._name} closed its stream of steps: {details or 'no reason given'}")


class ExecutorClient:
    """One executor, by address."""

    def __init__(self, index: int, address: str) -> None:
        self.name = f"executor {index}"
        self._address = address
        self._channel = open_channel(address)
        self._stub: Any = executor_pb2_grpc.ExecutorServiceStub(self._channel)

    async def describe(self, timeout_s: float) -> executor_pb2.ExecutorDescription:
        """Waits up to `timeout_s` for the executor to be there. Raises QuireError."""
        with errors_from_status(self.name):
            description = await self._stub.Describe(
                executor_pb2.DescribeExecutorRequest(), timeout=timeout_s, wait_for_ready=True
            )
        assert isinstance(description, executor_pb2.ExecutorDescription)
        return description

    def identify(self, peers: Peers) -> None:
        """Adds the process that listens at the address to `peers`, where that is a process of this host."""
        if not self._address.startswith("unix:"):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.setblocking(False)
            try:
                connection.connect(self._address.removeprefix("unix:"))
            except OSError as error:
                raise UnreachedError(f"{self.name} cannot be reached: {error}") from error
            peers.add(connection)

    async def progress(self) -> int:
        """A number that changes whenever the executor gets ahead with a step; 0 if it does not answer."""
        return await _ask_progress(self._stub, 0)

    async def attach(
        self, request: executor_pb2.AttachKvPoolRequest, timeout_s: float
    ) -> executor_pb2.AttachKvPoolResponse:
        """Makes the executor map the pool, after the step that it computes. Raises KvPoolError if it refuses."""
        with errors_from_status(self.name):
            response = await self._stub.AttachKvPool(request, timeout=timeout_s)
        assert isinstance(response, executor_pb2.AttachKvPoolResponse)
        return response

    async def open_steps(
        self, transport: StepTransport, timeout_s: float, peers: Peers | None = None
    ) -> GrpcStepChannel | RingStepChannel:
        """A new channel for steps; "auto" means rings with an executor on this host that knows them.

        Whoever takes rings is added to `peers`.
        Raises StartupError where rings are asked for and cannot be had, and QuireError where the executor fails.
        """
        on_this_host = self._address.startswith("unix:")
        if transport == "ring" and not on_this_host:
            message = f"{self.name} at {self._address} cannot share a ring: it has no unix: address"
            raise StartupError(message, field="step_transport")
        if transport == "grpc" or not on_this_host:
            return GrpcStepChannel(self.name, self._stub)
        try:
            with errors_from_status(self.name):
                return await self._open_rings(timeout_s, peers)
        except QuireError as error:
            if transport == "ring" or not _refuses_rings(error):
                raise
            logger.info("the steps of %s go over gRPC, since it cannot use rings: %s", self.name, error)
        return GrpcStepChannel(self.name, self._stub)

    async def _open_rings(self, timeout_s: float, peers: Peers | None) -> RingStepChannel:
        with contextlib.ExitStack() as on_failure:
            rings = on_failure.enter_context(StepRings.create())
            with offered("rings", rings.descriptors, peers) as address:
                call = self._stub.AttachRings(executor_pb2.AttachRingsRequest(handover_socket=str(address)))
                on_failure.callback(call.cancel)
                try:
                    async with asyncio.timeout(timeout_s):
                        response = await call.read()
                except TimeoutError:
                    raise DeadlineError(f"{self.name} did not take its rings within {timeout_s:g} seconds") from None
            if response is grpc.aio.EOF:
                raise ServiceUnavailableError(f"{self.name} did not take its rings")
            on_failure.pop_all()
        return RingStepChannel(self.name, rings, call)

    async def close(self) -> None:
        await self._channel.close()


async def _ask_progress(stub: Any, known: int) -> int:
    """What GetProgress says. No answer is no news: an executor that hangs altogether gives none."""
    try:
        answer = await stub.GetProgress(executor_pb2.GetProgressRequest(), timeout=_PROGRESS_TIMEOUT_S)
    except grpc.RpcError:
        return known
    return int(answer.progress)


def _refuses_rings(error: QuireError) -> bool:
    """Whether the executor is well but has no rings: an older one, or one that does not see our sockets."""
    call = error.__cause__
    unknown = isinstance(call, grpc.aio.AioRpcError) and call.code() is grpc.StatusCode.UNIMPLEMENTED
    return unknown or isinstance(error, RingError)
