"""A scheduler without blocks or executors, behind the real SchedulerService on a Unix socket.

What a sequence gets is `script(request, index)`: token ids, `Pause`s and `Together`s. The default script answers with
tokens that depend on prompt, seed and index alone. A sequence that comes with outputs goes on behind them.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from support.fake_monitor import FakeMonitor

from quire import rpc
from quire.columns import pack_u32, pack_u64, unpack_u32
from quire.errors import QuireError, UnreachedError
from quire.internal.v1 import executor_pb2, metrics_pb2, scheduler_pb2, scheduler_pb2_grpc
from quire.scheduler.metrics import MetricStore
from quire.v1 import generate_pb2, monitor_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

VOCAB_SIZE = 512
MAX_MODEL_LEN = 256
HIDDEN_SIZE = 8


@dataclass(frozen=True)
class Pause:
    """Nothing comes until the event is set."""

    until: asyncio.Event


@dataclass(frozen=True)
class Together:
    """Tokens of one message."""

    token_ids: Sequence[int]


Script = Callable[[scheduler_pb2.SubmitRequest, int], Sequence[int | Pause | Together]]


@dataclass
class Submitted:
    """A request as it came, and what became of it."""

    message: scheduler_pb2.SubmitRequest
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    aborts: list[scheduler_pb2.AbortRequest] = field(default_factory=list)
    # How often it was paused.
    num_pauses: int = 0
    may_run: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.may_run.set()

    @property
    def prompt_token_ids(self) -> list[int]:
        return unpack_u32(self.message.prompt_token_ids)

    @property
    def params(self) -> generate_pb2.SamplingParams:
        return self.message.sampling_params


def pseudo_random(request: scheduler_pb2.SubmitRequest, index: int) -> list[int]:
    """Printable tokens, a function of prompt, seed and index."""
    source = random.Random(f"{request.prompt_token_ids.hex()} {request.sampling_params.seed} {index}")
    return [source.randrange(60, 300) for _ in range(MAX_MODEL_LEN)]


def pseudo_state(request: scheduler_pb2.SubmitRequest) -> bytes:
    """An embedding that is not normalised, a function of prompt and pooling."""
    source = random.Random(f"{request.prompt_token_ids.hex()} {request.pooling}")
    return array("f", [source.gauss(0, 3) for _ in range(HIDDEN_SIZE)]).tobytes()


def prompt_logprobs_of(request: scheduler_pb2.SubmitRequest) -> list[generate_pb2.TokenLogprobs]:
    """Of a prompt from its second token on: 60, 61, … are likeliest; of other tokens the logprob is id / -100."""
    top = request.sampling_params.prompt_logprobs
    return [
        generate_pb2.TokenLogprobs(
            logprob=-token_id / 100 if not 60 <= token_id < 60 + top else float(60 - token_id),
            top_token_ids=[rank + 60 for rank in range(top)],
            top_logprobs=[-float(rank) for rank in range(top)],
        )
        for token_id in unpack_u32(request.prompt_token_ids)[1:]
    ]


class FakeScheduler(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Set its attributes to make it behave otherwise."""

    def __init__(
        self,
        path: Path,
        vocab_size: int = VOCAB_SIZE,
        max_num_seqs: int = 8,
        max_model_len: int = MAX_MODEL_LEN,
    ) -> None:
        self.address = f"unix:{path}"
        self.description = scheduler_pb2.DescribeResponse(
            model="fake",
            max_model_len=max_model_len,
            vocab_size=vocab_size,
            max_num_seqs=max_num_seqs,
            executors=[executor_pb2.ExecutorDescription(hidden_size=HIDDEN_SIZE)],
        )
        self.monitor = FakeMonitor()
        self.requests: list[Submitted] = []
        self.metrics = MetricStore(max_model_len)
        self.reset()
        self._streams: dict[str, asyncio.Queue[scheduler_pb2.StepOutputs | None]] = {}
        self._server: grpc.aio.Server | None = None
        self._crashing: asyncio.Task[None] | None = None
        self._step = 0
        self._arrived = asyncio.Condition()

    def reset(self) -> None:
        """Behaves as when new, and forgets what came."""
        for request in self.requests:
            for task in request.tasks:
                task.cancel()
        self.requests = []
        self.aborts: list[scheduler_pb2.AbortRequest] = []
        self.reset_script()
        self.describe_error: QuireError | None = None
        self.submit_error: QuireError | None = None
        # What a request is refused with, if anything.
        self.refuse: Callable[[scheduler_pb2.SubmitRequest], QuireError | None] = lambda message: None
        self.submit_delay = 0.0
        # Of each message of a sequence, in seconds.
        self.step_delay = 0.0
        self.cached_tokens = 0
        # Whether gateways are told that a sequence has ended.
        self.sends_ends = True
        # It crashes once it has sent so many messages more.
        self.crash_after: int | None = None

    def reset_script(self) -> None:
        """Sequences get what they get of a new scheduler."""
        self.script: Script = pseudo_random

    async def start(self) -> None:
        self._server = rpc.new_server()
        scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(self, self._server)
        monitor_pb2_grpc.add_MonitorServiceServicer_to_server(self.monitor, self._server)
        rpc.bind(self._server, self.address)
        await self._server.start()

    async def crash(self) -> None:
        """Ends without a word, as SIGKILL does; `start` starts its successor, which knows nothing."""
        self.metrics = MetricStore(self.description.max_model_len)
        server, self._server = self._server, None
        assert server is not None, "it does not run"
        for request in self.requests:
            for task in request.tasks:
                task.cancel()
        self._streams.clear()
        self.monitor.start_ns += 1
        await server.stop(None)

    async def settle(self) -> None:
        """Waits until a restart that it began by itself is done."""
        if self._crashing is not None:
            await self._crashing

    async def restart(self) -> None:
        """Crashes and is there again at once."""
        await self.crash()
        await self.start()

    async def stop(self) -> None:
        self.reset()
        self.drop_streams()
        if self._server is not None:
            await self._server.stop(None)

    def drop_streams(self) -> None:
        """Ends all output streams."""
        for stream in self._streams.values():
            stream.put_nowait(None)

    def send(self, message: scheduler_pb2.StepOutputs) -> None:
        """Sends a message to all gateways as it is."""
        for stream in self._streams.values():
            stream.put_nowait(message)

    @staticmethod
    def tokens_message(key: int, position: int, *, attempt: int = 0, token_id: int = 70) -> scheduler_pb2.StepOutputs:
        """One token of sequence 0."""
        return scheduler_pb2.StepOutputs(
            request_keys=pack_u64([key]),
            sequence_indices=pack_u32([0]),
            attempts=pack_u32([attempt]),
            positions=pack_u32([position]),
            token_ids=pack_u32([token_id]),
        )

    async def wait_aborts(self, count: int = 1) -> list[scheduler_pb2.AbortRequest]:
        """Waits until this many aborts have come."""
        async with asyncio.timeout(5), self._arrived:
            await self._arrived.wait_for(lambda: len(self.aborts) >= count)
        return self.aborts

    async def wait_requests(self, count: int = 1) -> list[Submitted]:
        """Waits until this many requests have come."""
        async with asyncio.timeout(5), self._arrived:
            await self._arrived.wait_for(lambda: len(self.requests) >= count)
        return self.requests

    async def Describe(  # noqa: N802
        self, request: scheduler_pb2.DescribeRequest, context: Context
    ) -> scheduler_pb2.DescribeResponse:
        async with rpc.errors_to_status(context):
            if self.describe_error is not None:
                raise self.describe_error
            return self.description

    async def StreamOutputs(  # noqa: N802
        self, request: scheduler_pb2.StreamOutputsRequest, context: Context
    ) -> AsyncIterator[scheduler_pb2.StepOutputs]:
        queue = self._streams[request.gateway_id] = asyncio.Queue()
        await context.send_initial_metadata(())
        try:
            while (message := await queue.get()) is not None:
                yield message
                if self.crash_after is not None:
                    self.crash_after -= 1
                    if self.crash_after <= 0:
                        self.crash_after = None
                        self._crashing = asyncio.create_task(self.restart())
                        return
        finally:
            if self._streams.get(request.gateway_id) is queue:
                self._end_stream(request.gateway_id)

    def _end_stream(self, gateway_id: str) -> None:
        """A gateway's requests end with its stream."""
        del self._streams[gateway_id]
        for submitted in self.requests:
            if submitted.message.gateway_id == gateway_id:
                for task in submitted.tasks:
                    task.cancel()

    async def Submit(  # noqa: N802
        self, request: scheduler_pb2.SubmitRequest, context: Context
    ) -> scheduler_pb2.SubmitResponse:
        async with rpc.errors_to_status(context):
            if request.gateway_id not in self._streams:
                raise UnreachedError("no output stream")
            if self.submit_error is not None:
                raise self.submit_error
            if (refusal := self.refuse(request)) is not None:
                raise refusal
            submitted = Submitted(request)
            async with self._arrived:
                self.requests.append(submitted)
                self._arrived.notify_all()
            if request.pooling:
                submitted.tasks = [asyncio.create_task(self._pool(request))]
            else:
                submitted.tasks = [asyncio.create_task(self._generate(submitted, state)) for state in request.sequences]
            await asyncio.sleep(self.submit_delay)
            return scheduler_pb2.SubmitResponse()

    async def Abort(  # noqa: N802
        self, request: scheduler_pb2.AbortRequest, context: Context
    ) -> scheduler_pb2.AbortResponse:
        for submitted in self.requests:
            if submitted.message.request_key == request.request_key:
                submitted.aborts.append(request)
                for state, task in zip(submitted.message.sequences, submitted.tasks, strict=True):
                    if not request.sequence_indices or state.index in request.sequence_indices:
                        task.cancel()
        async with self._arrived:
            self.aborts.append(request)
            self._arrived.notify_all()
        return scheduler_pb2.AbortResponse()

    async def _pool(self, request: scheduler_pb2.SubmitRequest) -> None:
        pauses = () if self.script is pseudo_random else self.script(request, 0)
        for entry in pauses:
            if isinstance(entry, Pause):
                await entry.until.wait()
        message = scheduler_pb2.StepOutputs(step=self._step)
        name = {"request_key": request.request_key, "attempt": request.attempt}
        message.started.add(**name, cached_tokens=self.cached_tokens)
        message.embeddings.add(**name, values=pseudo_state(request))
        if (stream := self._streams.get(request.gateway_id)) is not None:
            stream.put_nowait(message)

    async def ReportMetrics(  # noqa: N802
        self, request: metrics_pb2.ReportMetricsRequest, context: Context
    ) -> metrics_pb2.ReportMetricsResponse:
        self.metrics.add(request)
        return metrics_pb2.ReportMetricsResponse()

    async def CollectMetrics(  # noqa: N802
        self, request: metrics_pb2.CollectMetricsRequest, context: Context
    ) -> metrics_pb2.CollectMetricsResponse:
        self.metrics.add(request.report)
        return metrics_pb2.CollectMetricsResponse(values=self.metrics.values(with_tenants=request.with_tenants))

    async def SetFlow(  # noqa: N802
        self, request: scheduler_pb2.SetFlowRequest, context: Context
    ) -> scheduler_pb2.SetFlowResponse:
        for submitted in self.requests:
            if submitted.message.request_key == request.request_key:
                if request.paused:
                    submitted.num_pauses += 1
                    submitted.may_run.clear()
                else:
                    submitted.may_run.set()
        return scheduler_pb2.SetFlowResponse()

    async def _generate(self, submitted: Submitted, state: scheduler_pb2.SequenceState) -> None:
        """One message per token (or Together), the end with the last one."""
        request = submitted.message
        known = [] if request.sampling_params.use_beam_search else unpack_u32(state.output_token_ids)
        sequence = _Sequence(request, state.index, self.cached_tokens, len(known))
        for entry in self.script(request, state.index):
            if isinstance(entry, Pause):
                if not known:
                    await entry.until.wait()
                continue
            token_ids = entry.token_ids if isinstance(entry, Together) else [entry]
            skipped, known = known[: len(token_ids)], known[len(token_ids) :]
            assert skipped == list(token_ids[: len(skipped)]), "the gateway sent other tokens than it was given"
            if len(skipped) == len(token_ids):
                continue
            await submitted.may_run.wait()
            self._step += 1
            message = sequence.step(self._step, token_ids[len(skipped) :])
            has_ended = bool(message.finished)
            if not self.sends_ends:
                del message.finished[:]
            stream = self._streams.get(request.gateway_id)
            if stream is None:
                return
            stream.put_nowait(message)
            if has_ended:
                return
            await asyncio.sleep(self.step_delay)


class _Sequence:
    """Counts positions and knows when to end."""

    def __init__(self, request: scheduler_pb2.SubmitRequest, index: int, cached_tokens: int, num_tokens: int) -> None:
        """`num_tokens`: how many it has already."""
        self._request = request
        self._index = index
        self._cached_tokens = cached_tokens
        self._num_tokens = num_tokens
        self._has_started = False

    def step(self, step: int, token_ids: Sequence[int]) -> scheduler_pb2.StepOutputs:
        taken: list[int] = []
        end: scheduler_pb2.SequenceFinished | None = None
        for token_id in token_ids:
            taken.append(token_id)
            end = self._end(token_id, self._num_tokens + len(taken))
            if end is not None:
                break
        message = self._message(step, taken)
        if end is not None:
            message.finished.append(end)
        self._num_tokens += len(taken)
        return message

    def _message(self, step: int, token_ids: Sequence[int]) -> scheduler_pb2.StepOutputs:
        count, request = len(token_ids), self._request
        message = scheduler_pb2.StepOutputs(
            step=step,
            request_keys=pack_u64([request.request_key] * count),
            sequence_indices=pack_u32([self._index] * count),
            attempts=pack_u32([request.attempt] * count),
            positions=pack_u32(range(self._num_tokens, self._num_tokens + count)),
            token_ids=pack_u32(token_ids),
        )
        if not self._has_started and self._index == request.sequences[0].index:
            name = {"request_key": request.request_key, "attempt": request.attempt}
            message.started.add(**name, cached_tokens=self._cached_tokens)
            if request.sampling_params.HasField("prompt_logprobs"):
                message.prompt_logprobs.add(**name, start=1, positions=prompt_logprobs_of(request))
        self._has_started = True
        if request.sampling_params.HasField("logprobs"):
            top = request.sampling_params.logprobs
            for row, token_id in enumerate(token_ids):
                logprobs = generate_pb2.TokenLogprobs(
                    logprob=-0.5,
                    top_token_ids=[token_id + rank for rank in range(top)],
                    top_logprobs=[-0.5 - rank for rank in range(top)],
                )
                message.logprobs.add(row=row, logprobs=logprobs)
        return message

    def _end(self, token_id: int, num_tokens: int) -> scheduler_pb2.SequenceFinished | None:
        params = self._request.sampling_params
        end = scheduler_pb2.SequenceFinished(
            request_key=self._request.request_key, sequence_index=self._index, attempt=self._request.attempt
        )
        if num_tokens >= params.min_tokens:
            if token_id in params.stop_token_ids:
                end.reason, end.stop_token_id = generate_pb2.FINISH_REASON_STOP, token_id
                return end
            if token_id in unpack_u32(self._request.eos_token_ids) and not params.ignore_eos:
                end.reason = generate_pb2.FINISH_REASON_STOP
                return end
        if num_tokens >= params.max_tokens:
            end.reason = generate_pb2.FINISH_REASON_LENGTH
            return end
        return None


@contextlib.asynccontextmanager
async def running(scheduler: FakeScheduler) -> AsyncIterator[FakeScheduler]:
    """Serves while the block runs."""
    await scheduler.start()
    try:
        yield scheduler
    finally:
        await scheduler.stop()
