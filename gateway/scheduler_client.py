"""The gateway's side of SchedulerService: one output stream, taken apart into one stream per request."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from quire.columns import unpack_u32, unpack_u64
from quire.errors import DeadlineError, OverloadedError, QuireError, ServiceUnavailableError, StartupError
from quire.gateway.flow_control import FlowControl, FlowLimits, ReaderFlow
from quire.internal.v1 import scheduler_pb2, scheduler_pb2_grpc
from quire.outputs import FinishReason, TokenLogprobs, finish_reason_from_proto
from quire.rpc import errors_from_status, from_rpc_error, open_channel
from quire.v1 import generate_pb2

logger = logging.getLogger(__name__)

# A live scheduler answers within milliseconds; these bound how long a stopped one can hold a client.
_CALL_TIMEOUT_S = 30.0
_CLOSE_TIMEOUT_S = 1.0
_CONNECT_RETRY_S = 0.1


@dataclass(frozen=True, slots=True)
class SequenceEnd:
    """How the scheduler ended a sequence."""

    reason: FinishReason
    stop_token_id: int | None = None
    # Of beam search.
    cumulative_logprob: float | None = None


@dataclass(slots=True)
class SequenceChunk:
    """What came for one sequence."""

    token_ids: list[int] = field(default_factory=list)
    # One per token if the request asked for them, else empty.
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    end: SequenceEnd | None = None


@dataclass(slots=True)
class StepChunk:
    """What came for one request since its reader last looked: one step's, or more if the reader was busy."""

    # By sequence index.
    sequences: dict[int, SequenceChunk] = field(default_factory=dict)
    # Prompt tokens found in the prefix cache, when the request first ran.
    cached_tokens: int | None = None
    # Of the prompt's next tokens, from the second on; all of them come before the first token of the output.
    prompt_logprobs: list[generate_pb2.TokenLogprobs] = field(default_factory=list)
    # float32 column: of a pooling request, for which nothing else comes.
    embedding: bytes | None = None

    def of_sequence(self, index: int) -> SequenceChunk:
        """The part of one sequence, made if it is not there."""
        chunk = self.sequences.get(index)
        if chunk is None:
            chunk = self.sequences[index] = SequenceChunk()
        return chunk


class RequestStream:
    """What the scheduler gives one request. Its owner must pass it to `SchedulerClient.release`.

    It has one reader. What comes before the reader looks again is one chunk; how large it may grow is for its flow.
    """

    def __init__(self, key: int, num_sequences: int, flow: ReaderFlow) -> None:
        self.key = key
        self.flow = flow
        # Counts up when the request is submitted again after a failure; outputs of older attempts are dropped.
        self.attempt = 0
        # Per sequence: the position of the token that comes next.
        self._next_positions = [0] * num_sequences
        # The same for logprobs of the prompt, whose first token has none.
        self._next_prompt_position = 1
        self._pending: StepChunk | None = None
        self._error: QuireError | None = None
        self._reader: asyncio.Future[None] | None = None

    async def next_chunk(self) -> StepChunk:
        """Waits for the next chunk. Raises the QuireError that ended the stream, after what came before it."""
        if self._pending is None and self._error is None:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        chunk, self._pending = self._pending, None
        if chunk is not None:
            self.flow.take()
            return chunk
        assert self._error is not None, "woken for nothing"
        raise self._error

    def pending(self) -> StepChunk:
        """The chunk that the reader gets next; it runs once its waker is back in the event loop."""
        if self._pending is None:
            self._pending = StepChunk()
            self._wake()
        return self._pending

    def add_token(self, index: int, position: int, token_id: int, logprobs: TokenLogprobs | None) -> None:
        """Adds a token, unless it came before. Raises QuireError if the one before it never came."""
        expected = self._next_positions[index]
        if position < expected:
            return
        if position > expected:
            raise QuireError(f"the scheduler skipped tokens {expected} to {position - 1} of sequence {index}")
        self._next_positions[index] = expected + 1
        chunk = self.pending().of_sequence(index)
        chunk.token_ids.append(token_id)
        if logprobs is None:
            self.flow.add(1)
        else:
            chunk.logprobs.append(logprobs)
            self.flow.add(2 + len(logprobs.top))

    def add_prompt_logprobs(self, start: int, positions: Sequence[generate_pb2.TokenLogprobs]) -> None:
        """Adds those of `positions`, which begin at token `start` of the prompt, that did not come before.

        Raises QuireError if there are some between these and what came.
        """
        expected = self._next_prompt_position
        if start > expected:
            raise QuireError(f"the scheduler skipped the logprobs of prompt tokens {expected} to {start - 1}")
        new = positions[expected - start :]
        if new:
            self._next_prompt_position = expected + len(new)
            self.pending().prompt_logprobs.extend(new)

    def fail(self, error: QuireError) -> None:
        """Ends the stream after what is pending."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class SchedulerClient:
    """One gateway's connection to its scheduler.

    When the connection is lost every running request fails with ServiceUnavailableError. (Here a later version
    resubmits them: `RequestStream.attempt` and the positions are what it needs.)
    """

    def __init__(
        self,
        address: str,
        channel: grpc.aio.Channel,
        max_requests: int | None = None,
        flow_limits: FlowLimits | None = None,
    ) -> None:
        """Use `connect`."""
        self._max_requests = max_requests
        self._address = address
        self._channel = channel
        self._stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        self._gateway_id = secrets.token_hex(8)
        self._keys = itertools.count(1)
        self._running: dict[int, RequestStream] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self.flow = FlowControl(self._set_flow, self._spawn, flow_limits)
        self._idle = asyncio.Event()
        self._idle.set()
        self._lost: asyncio.Future[QuireError] = asyncio.get_running_loop().create_future()
        self._reader: asyncio.Task[None] | None = None
        self.description = scheduler_pb2.DescribeResponse()

    @classmethod
    async def connect(
        cls, address: str, timeout: float, max_requests: int | None = None, *, flow_limits: FlowLimits | None = None
    ) -> SchedulerClient:
        """Waits up to `timeout` seconds for the scheduler to be ready. Raises StartupError.

        At most `max_requests` may run or wait at a time; None for any number.
        """
        client = cls(address, open_channel(address), max_requests, flow_limits)
        try:
            async with asyncio.timeout(timeout):
                client.description = await client._describe()
                await client._open_stream()
        except TimeoutError as error:
            await client.close()
            message = f"the scheduler at {address} is not ready after {timeout:g} s"
            raise StartupError(message, field="scheduler") from error
        except BaseException:
            await client.close()
            raise
        return client

    @property
    def is_connected(self) -> bool:
        """Whether requests can be submitted."""
        return self._reader is not None and not self._lost.done()

    async def wait_lost(self) -> QuireError:
        """Waits until the connection is lost; returns why."""
        return await asyncio.shield(self._lost)

    async def wait_idle(self) -> None:
        """Waits until no request runs."""
        await self._idle.wait()

    async def submit(self, request: scheduler_pb2.SubmitRequest) -> RequestStream:
        """Queues a request, after filling in who sends it. Raises OverloadedError and what the scheduler says of it."""
        if self._lost.done():
            raise self._lost.result()
        if self._max_requests is not None and len(self._running) >= self._max_requests:
            raise OverloadedError(f"the server has {self._max_requests} requests already; try again later")
        key = next(self._keys)
        stream = RequestStream(key, len(request.sequences), self.flow.new_reader(key))
        request.gateway_id = self._gateway_id
        request.request_key = stream.key
        request.attempt = stream.attempt
        request.arrival_time_ns = time.time_ns()
        # Before the call: the first tokens may arrive before its answer.
        self._running[stream.key] = stream
        self._idle.clear()
        try:
            with errors_from_status("the scheduler"):
                await self._stub.Submit(request, timeout=_CALL_TIMEOUT_S)
        except DeadlineError as error:
            self.abort(stream, scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED)
            raise ServiceUnavailableError("the scheduler does not answer") from error
        except QuireError:
            self.release(stream)
            raise
        except BaseException:
            # Cancelled while waiting: the scheduler may have it or not.
            self.abort(stream, scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED)
            raise
        return stream

    def abort(self, stream: RequestStream, reason: scheduler_pb2.AbortReason.ValueType) -> None:
        """Ends a request whose outputs nobody wants any more; returns at once."""
        if stream.key in self._running:
            self.release(stream)
            self._send_abort(stream.key, (), reason)

    def abort_sequence(self, stream: RequestStream, index: int, reason: scheduler_pb2.AbortReason.ValueType) -> None:
        """Ends one sequence of a request; returns at once."""
        self._send_abort(stream.key, (index,), reason)

    def release(self, stream: RequestStream) -> None:
        """Forgets a request; what still arrives for it is dropped."""
        self._running.pop(stream.key, None)
        stream.flow.forget()
        if not self._running:
            self._idle.set()

    def fail_all(self, error: QuireError, reason: scheduler_pb2.AbortReason.ValueType) -> None:
        """Ends every running request with an error."""
        for stream in list(self._running.values()):
            stream.fail(error)
            self.abort(stream, reason)

    async def close(self) -> None:
        """Sends the aborts that are on their way, then closes the connection, which aborts what still runs."""
        if not self._lost.done():
            self._lost.set_result(ServiceUnavailableError("the server is shutting down"))
        if self._background:
            await asyncio.wait(self._background, timeout=_CLOSE_TIMEOUT_S)
        tasks = [*self._background, *([self._reader] if self._reader else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._channel.close()

    async def _describe(self) -> scheduler_pb2.DescribeResponse:
        while True:
            try:
                return await self._stub.Describe(scheduler_pb2.DescribeRequest(), wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                # It may listen before its executors are ready, or restart meanwhile.
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise StartupError(f"the scheduler at {self._address}: {error.details()}") from error
            await asyncio.sleep(_CONNECT_RETRY_S)

    async def _open_stream(self) -> None:
        outputs = self._stub.StreamOutputs(scheduler_pb2.StreamOutputsRequest(gateway_id=self._gateway_id))
        # The scheduler sends its metadata once it knows the gateway; only then may requests be submitted.
        with errors_from_status("the scheduler"):
            await outputs.initial_metadata()
            if outputs.done():
                await outputs.read()  # raises why
        self._reader = asyncio.create_task(self._read(outputs), name="scheduler outputs")

    async def _read(self, outputs: grpc.aio.UnaryStreamCall[Any, scheduler_pb2.StepOutputs]) -> None:
        reason = "it closed the output stream"
        try:
            async for message in outputs:
                self._dispatch(message)
        except grpc.aio.AioRpcError as error:
            reason = from_rpc_error(error).message
        except Exception as error:  # whatever it is, nobody may wait for ever
            logger.exception("the scheduler sent a malformed message")
            reason = f"it sent a malformed message: {error}"
        finally:
            outputs.cancel()
        lost = ServiceUnavailableError(f"the connection to the scheduler is lost: {reason}")
        if not self._lost.done():
            self._lost.set_result(lost)
        self.fail_all(lost, scheduler_pb2.ABORT_REASON_SHUTDOWN)

    def _dispatch(self, message: scheduler_pb2.StepOutputs) -> None:
        """Hands a step's columns to the requests they belong to."""
        for started in message.started:
            if stream := self._current(started.request_key, started.attempt):
                stream.pending().cached_tokens = started.cached_tokens
        for entry in message.prompt_logprobs:
            if stream := self._current(entry.request_key, entry.attempt):
                try:
                    stream.add_prompt_logprobs(entry.start, entry.positions)
                except QuireError as error:
                    self._give_up(stream, error)
        for embedding in message.embeddings:
            if stream := self._current(embedding.request_key, embedding.attempt):
                stream.pending().embedding = embedding.values
        self._dispatch_tokens(message)
        for end in message.finished:
            reason = finish_reason_from_proto(end.reason)
            stream = self._current(end.request_key, end.attempt)
            if stream is not None and reason is not None:
                stop_token_id = end.stop_token_id if end.HasField("stop_token_id") else None
                logprob = end.cumulative_logprob if end.HasField("cumulative_logprob") else None
                stream.pending().of_sequence(end.sequence_index).end = SequenceEnd(reason, stop_token_id, logprob)
        for failed in message.failed:
            if stream := self._current(failed.request_key, failed.attempt):
                stream.fail(QuireError(failed.message))
                self.release(stream)

    def _dispatch_tokens(self, message: scheduler_pb2.StepOutputs) -> None:
        logprobs = {entry.row: entry.logprobs for entry in message.logprobs}
        rows = zip(
            unpack_u64(message.request_keys),
            unpack_u32(message.sequence_indices),
            unpack_u32(message.attempts),
            unpack_u32(message.positions),
            unpack_u32(message.token_ids),
            strict=True,
        )
        for row, (key, index, attempt, position, token_id) in enumerate(rows):
            stream = self._current(key, attempt)
            if stream is None:
                continue
            entry = logprobs.get(row)
            position_logprobs = None if entry is None else TokenLogprobs.from_proto(token_id, entry)
            try:
                stream.add_token(index, position, token_id, position_logprobs)
            except QuireError as error:
                self._give_up(stream, error)

    def _give_up(self, stream: RequestStream, error: QuireError) -> None:
        """Ends a request whose outputs make no sense."""
        stream.fail(error)
        self.abort(stream, scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED)

    def _current(self, key: int, attempt: int) -> RequestStream | None:
        """The running request that an output belongs to, unless it was meant for an older attempt."""
        stream = self._running.get(key)
        return stream if stream is not None and stream.attempt == attempt else None

    def _send_abort(self, key: int, indices: Sequence[int], reason: scheduler_pb2.AbortReason.ValueType) -> None:
        if self._lost.done():
            return
        request = scheduler_pb2.AbortRequest(
            gateway_id=self._gateway_id, request_key=key, sequence_indices=indices, reason=reason
        )
        self._spawn(self._call_abort(request))

    async def _call_abort(self, request: scheduler_pb2.AbortRequest) -> None:
        # If it fails the connection is about to be lost, and the scheduler aborts all that it carried.
        with contextlib.suppress(grpc.RpcError):
            await self._stub.Abort(request, timeout=_CALL_TIMEOUT_S)

    async def _set_flow(self, key: int, paused: bool) -> None:
        """Pauses or resumes a request at the scheduler; one that cannot be told fails, or it might wait for ever."""
        if key not in self._running:
            return
        request = scheduler_pb2.SetFlowRequest(gateway_id=self._gateway_id, request_key=key, paused=paused)
        try:
            with errors_from_status("the scheduler"):
                await self._stub.SetFlow(request, timeout=_CALL_TIMEOUT_S)
        except QuireError as error:
            if (stream := self._running.get(key)) is not None:
                stream.fail(ServiceUnavailableError(f"the scheduler does not answer: {error.message}"))
                self.abort(stream, scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
