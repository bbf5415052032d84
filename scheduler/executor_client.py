"""The scheduler's side of an executor: describe, attach the pool, exchange steps.

`StepChannel` is all that the step loop knows. Here it is a gRPC stream; a shared-memory ring can join it.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import grpc

from quire.errors import QuireError, ServiceUnavailableError
from quire.internal.v1 import executor_pb2, executor_pb2_grpc
from quire.rpc import errors_from_status, open_channel


class StepChannel(Protocol):
    """Carries steps to one executor and results back, in order. Not for concurrent senders or receivers."""

    async def send(self, plan: executor_pb2.StepPlan) -> None:
        """Hands a plan over; returns once it is on its way. Raises QuireError if the executor is gone."""

    async def receive(self) -> executor_pb2.StepResult:
        """The next result. Raises QuireError if the executor failed or is gone."""


class GrpcStepChannel:
    """Steps over the bidirectional stream of ExecutorService."""

    def __init__(self, name: str, stub: executor_pb2_grpc.ExecutorServiceAsyncStub) -> None:
        self._name = name
        self._call: Any = stub.RunSteps()

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

    async def close(self) -> None:
        """Ends the stream; the executor finishes what it has."""
        self._call.cancel()

    async def _reason(self) -> QuireError:
        """Why the stream has ended."""
        details = await self._call.details()
        return ServiceUnavailableError(f"{self._name} closed its stream of steps: {details or 'no reason given'}")


class ExecutorClient:
    """One executor, by address."""

    def __init__(self, index: int, address: str) -> None:
        self.name = f"executor {index}"
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

    async def attach(self, request: executor_pb2.AttachKvPoolRequest, timeout_s: float) -> None:
        """Makes the executor map the pool. Raises KvPoolError if it refuses."""
        with errors_from_status(self.name):
            await self._stub.AttachKvPool(request, timeout=timeout_s)

    def open_steps(self) -> GrpcStepChannel:
        """A new stream of steps."""
        return GrpcStepChannel(self.name, self._stub)

    async def close(self) -> None:
        await self._channel.close()
