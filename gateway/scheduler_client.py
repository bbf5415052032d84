"""The gateway's side of SchedulerService: requests in, one stream of outputs for each.

A request outlives the scheduler that runs it: what came of it so far is in its RequestStream, and whatever scheduler
comes next is given the request with that. Its reader sees a pause and then what it would have seen anyway.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Final

from quire.errors import OverloadedError, QuireError, ServiceUnavailableError, UnreachedError
from quire.gateway.connection import CALL_TIMEOUT_S, RETRY_S, UNREACHED, SchedulerConnection
from quire.gateway.flow_control import FlowControl, FlowLimits
from quire.gateway.instructions import Instructions
from quire.gateway.overload import Refusals
from quire.gateway.request_stream import RequestStream
from quire.gateway.running_requests import RunningRequests
from quire.internal.v1 import scheduler_pb2, scheduler_pb2_grpc
from quire.rpc import errors_from_status

# How long a new request waits for a scheduler that is away, or that does not answer.
_SUBMIT_TIMEOUT_S: Final = 30.0


class SchedulerClient:
    """One gateway's requests at its scheduler."""

    def __init__(self, address: str, max_requests: int | None = None, flow_limits: FlowLimits | None = None) -> None:
        """Use `connect`."""
        self._max_requests = max_requests
        self._refusals = Refusals()
        self._keys = itertools.count(1)
        self._running = RunningRequests(self._give_up)
        self._connection = SchedulerConnection(
            address,
            receive=self._receive,
            restore=self._restore,
            give_up=self._fail_unfinished,
            on_change=self._connection_changed,
        )
        self._instructions = Instructions(self._connection)
        self.flow = FlowControl(self._set_flow, self._instructions.spawn, flow_limits)
        # Of the scheduler, as far as it said; None before that.
        self.num_live_executors: int | None = None
        # Messages that came, over all connections.
        self.num_messages = 0
        # Set whenever `is_connected` or `num_live_executors` has changed.
        self.changed = asyncio.Event()

    @classmethod
    async def connect(
        cls, address: str, timeout: float, max_requests: int | None = None, *, flow_limits: FlowLimits | None = None
    ) -> SchedulerClient:
        """Waits up to `timeout` seconds for the scheduler to be ready. Raises StartupError.

        At most `max_requests` may run or wait at a time; None for any number.
        """
        client = cls(address, max_requests, flow_limits)
        try:
            await client._connection.open(timeout)
        except BaseException:
            await client.close()
            raise
        return client

    @property
    def connection(self) -> SchedulerConnection:
        """For calls that have nothing to do with requests."""
        return self._connection

    @property
    def description(self) -> scheduler_pb2.DescribeResponse:
        """What is served; the same over all schedulers that come and go."""
        return self._connection.description

    @property
    def stub(self) -> scheduler_pb2_grpc.SchedulerServiceAsyncStub:
        """For calls that concern no request."""
        return self._connection.stub

    @property
    def gateway_id(self) -> str:
        """Names this gateway to every scheduler."""
        return self._connection.gateway_id

    @property
    def is_connected(self) -> bool:
        """Whether requests are submitted at once."""
        return self._connection.is_open

    @property
    def awaits_outputs(self) -> bool:
        """Whether a request runs of which something should come soon, unless others go before it."""
        return any(stream.is_unfinished and not stream.is_silent for stream in self._running.all())

    async def wait_lost(self) -> QuireError:
        """Waits until there will never be a scheduler again for this client; returns why."""
        return await self._connection.wait_fatal()

    def lose(self, error: QuireError) -> None:
        """Ends all requests, those to come as well: there will be no scheduler again."""
        self._connection.end(error)

    async def wait_idle(self) -> None:
        """Waits until no request runs."""
        await self._running.wait_idle()

    def check_load(self, tenant: str) -> None:
        """Raises OverloadedError if `submit` would, as far as is known without asking the scheduler."""
        self._check_number()
        self._refusals.check(tenant)

    async def submit(self, request: scheduler_pb2.SubmitRequest) -> RequestStream:
        """Queues a request, after filling in who sends it; waits for a scheduler that is away.

        Raises OverloadedError, what the scheduler says of it, and ServiceUnavailableError if none comes in time.
        """
        self._check_number()
        request.gateway_id = self._connection.gateway_id
        request.request_key = next(self._keys)
        request.arrival_time_ns = time.time_ns()
        stream = RequestStream(request, self.flow.new_reader(request.request_key))
        # Before the call: the first tokens may arrive before its answer.
        self._running.add(stream)
        try:
            await self._submit_new(stream)
        except QuireError as error:
            self.release(stream)
            if isinstance(error, OverloadedError):
                self._refusals.note(request.tenant.name, error)
            raise
        except BaseException:
            # Cancelled while waiting: the scheduler may have it or not.
            self.abort(stream, scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED)
            raise
        return stream

    def abort(self, stream: RequestStream, reason: scheduler_pb2.AbortReason.ValueType) -> None:
        """Ends a request whose outputs nobody wants any more; returns at once."""
        if stream in self._running:
            self.release(stream)
            self._instructions.abort(stream.key, (), reason)

    def abort_sequence(self, stream: RequestStream, index: int, reason: scheduler_pb2.AbortReason.ValueType) -> None:
        """Ends one sequence of a request; returns at once."""
        stream.abandon(index)
        self._instructions.abort(stream.key, (index,), reason)

    def release(self, stream: RequestStream) -> None:
        """Forgets a request; what still arrives for it is dropped."""
        self._running.remove(stream)

    def fail_all(self, error: QuireError, reason: scheduler_pb2.AbortReason.ValueType) -> None:
        """Ends every running request with an error."""
        for stream in self._running.all():
            stream.fail(error)
            self.abort(stream, reason)

    async def close(self) -> None:
        """Sends the aborts that are on their way, then closes the connection, which aborts what still runs."""
        self._connection.refuse(ServiceUnavailableError("the server is shutting down"))
        await self._instructions.close()
        await self._connection.close()

    # Submitting

    async def _submit_new(self, stream: RequestStream) -> None:
        """Submits until a scheduler has answered. Raises what it says, and ServiceUnavailableError if none does."""
        reason = "it is not there"
        try:
            async with asyncio.timeout(_SUBMIT_TIMEOUT_S):
                # What has come whole needs no answer.
                while stream.is_unfinished and not stream.is_accepted and stream in self._running:
                    await self._connection.wait_open()
                    try:
                        await self._submit(stream)
                    except UNREACHED as error:
                        reason = error.message
                        await asyncio.sleep(RETRY_S)
        except TimeoutError as error:
            self._instructions.abort(stream.key, (), scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED)
            message = f"the scheduler has not taken the request in {_SUBMIT_TIMEOUT_S:g} s: {reason}"
            raise ServiceUnavailableError(message) from error

    async def _submit(self, stream: RequestStream) -> None:
        """One attempt. Raises one of UNREACHED if it is not known to be heard, and what the scheduler says."""
        epoch = self._connection.epoch
        with errors_from_status("the scheduler"):
            await self._connection.stub.Submit(stream.next_attempt(), timeout=CALL_TIMEOUT_S)
        if not self._connection.is_on(epoch):
            raise UnreachedError("the output stream ended before the answer came")
        stream.is_accepted = True
        if stream.attempt:
            stream.flow.restart()
        if stream not in self._running and stream.is_unfinished:
            # Given up meanwhile; the abort may have overtaken the call.
            self._instructions.abort(stream.key, (), scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED)

    async def _restore(self) -> None:
        """Submits again, in the order of their arrival, what an older scheduler had.

        Raises ServiceUnavailableError, or one of UNREACHED, if this one cannot take it now.
        """
        for stream in self._running.all():
            stream.end_complete(self.description.max_model_len)
            # What is not accepted yet is still being submitted, by `submit`.
            if stream not in self._running or not stream.is_accepted or not stream.is_unfinished:
                continue
            try:
                stream.count_loss()
                await self._submit(stream)
            except (ServiceUnavailableError, *UNREACHED):
                raise
            except QuireError as error:
                stream.fail(error)
                self.release(stream)

    def _fail_unfinished(self, error: QuireError) -> None:
        """Of what has ended, the reader gets the rest."""
        for stream in self._running.all():
            if stream.is_unfinished:
                stream.fail(error)
                self.release(stream)

    # Outputs

    def _receive(self, message: scheduler_pb2.StepOutputs) -> None:
        self.num_messages += 1
        if message.HasField("state"):
            self.num_live_executors = message.state.num_live_executors
            self.changed.set()
        self._running.take(message)

    def _connection_changed(self) -> None:
        if not self._connection.has_stream:
            self.num_live_executors = None
        self.changed.set()

    def _check_number(self) -> None:
        if self._max_requests is not None and len(self._running) >= self._max_requests:
            message = f"the server has {self._max_requests} requests already; try again later"
            raise OverloadedError(message, field="max_concurrent_requests")

    def _give_up(self, stream: RequestStream, error: QuireError) -> None:
        """Ends a request whose outputs make no sense."""
        stream.fail(error)
        self.abort(stream, scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED)

    async def _set_flow(self, key: int, paused: bool) -> None:
        if self._running.has(key):
            await self._instructions.set_flow(key, paused)
