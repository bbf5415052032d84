"""Spans of requests in the scheduler, and in the executors, which have no network: their steps' results carry times.

Only requests whose gateway sent a `traceparent` are looked at. Each of their sequences waits (`queue`), has its known
tokens computed (`prefill`) and goes on token by token (`decode`); one that is preempted or loses its executor begins
again. Spans are made when such a phase ends, so what a scheduler's death interrupts is not in the trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from opentelemetry.context import Context
from opentelemetry.trace import Span, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from quire.internal.v1 import executor_pb2
from quire.scheduler.outputs import StepEvents
from quire.scheduler.scheduler import Scheduler
from quire.scheduler.sequence import Request, SequenceStatus
from quire.scheduler.sequence import Sequence as RequestSequence
from quire.scheduler.step_plan import Chunk, StepPlan
from quire.scheduler.step_times import StepTimes
from quire.tracing import wall_clock_offset_ns

if TYPE_CHECKING:
    from quire.scheduler.step_loop import StepRecord

_propagator: Final = TraceContextTextMapPropagator()


@dataclass(slots=True)
class _ComputedChunk:
    """A step's part of a prefill."""

    step: int
    start: int
    num_tokens: int
    times: StepTimes


@dataclass(slots=True)
class _Run:
    """A sequence in one of its phases."""

    sequence: RequestSequence
    phase: Literal["queue", "prefill", "decode", "ended"]
    since_ns: int
    lane: int = 0
    chunks: list[_ComputedChunk] = field(default_factory=list)
    # Of the decode: the first step, once it is computed, and the tokens that were known before it.
    decode_started_ns: int = 0
    num_tokens_before: int = 0

    def begin(self, phase: Literal["queue", "prefill", "decode", "ended"], now_ns: int) -> None:
        """The next phase."""
        self.phase, self.since_ns = phase, now_ns
        self.chunks, self.decode_started_ns = [], 0
        self.num_tokens_before = len(self.sequence.token_ids)


@dataclass(slots=True)
class _RequestTrace:
    """A request that is traced."""

    request: Request
    # The gateway's span.
    context: Context
    clock_offset_ns: int
    runs: dict[int, _Run]


class SchedulerTracing:
    """The spans of all traced requests. Times are CLOCK_MONOTONIC nanoseconds."""

    def __init__(self, scheduler: Scheduler, tracer: Tracer, executors: Sequence[Tracer]) -> None:
        """`executors` are the tracers of the lanes' executors."""
        self._scheduler = scheduler
        self._tracer = tracer
        self._executors = executors
        self._traces: dict[Request, _RequestTrace] = {}
        # By lane: decodes whose first step is not computed yet, and the end of the latest step.
        self._beginning: list[list[_Run]] = [[] for _ in executors]
        self._finished_ns = [0] * len(executors)
        self._num_preemptions = 0

    @property
    def is_idle(self) -> bool:
        """Whether no request is traced: then there is nothing to tell."""
        return not self._traces

    def begin(self, request: Request) -> None:
        """A request was queued."""
        if not request.trace_parent:
            return
        context = _propagator.extract({"traceparent": request.trace_parent}, Context())
        # The beams of a search are no continuations of their own.
        sequences = request.sequences[:1] if request.params.use_beam_search else request.sequences
        runs = {sequence.index: _Run(sequence, "queue", request.submitted_ns) for sequence in sequences}
        self._traces[request] = _RequestTrace(request, context, wall_clock_offset_ns(), runs)

    def planned(self, plan: StepPlan, now_ns: int) -> None:
        """A step was sent to its executor."""
        if self._scheduler.num_preemptions != self._num_preemptions:
            self._num_preemptions = self._scheduler.num_preemptions
            self.look("preempted", now_ns)
        for chunk in plan.chunks:
            found = self._find(plan.sequences[chunk.row])
            if found is None:
                continue
            trace, run = found
            if run.phase == "queue":
                self._end_phase(trace, run, now_ns)
                run.begin("prefill", now_ns)
                run.lane = plan.lane

    def computed(self, plan: StepPlan, record: StepRecord, result: executor_pb2.StepResult, events: StepEvents) -> None:
        """The step's result was taken in."""
        times, lane, now_ns = StepTimes.of(record, result), plan.lane, record.result_received_ns
        self._finished_ns[lane] = times.finished_ns
        beginning, self._beginning[lane] = self._beginning[lane], []
        for run in beginning:
            run.decode_started_ns = times.started_ns
        for chunk in plan.chunks:
            if (found := self._find(plan.sequences[chunk.row])) is not None:
                self._add_chunk(*found, plan, chunk, times, now_ns)
        for sequence in events.finished:
            if (found := self._find(sequence)) is not None:
                self._end(*found, now_ns)
            if sequence.request.is_finished:  # a beam search ends as a whole
                self._end_request(sequence.request, now_ns)
        for request, _ in events.embeddings:
            self._end_request(request, now_ns)
        for request, reason in events.failed:
            self._end_request(request, now_ns, reason)

    def look(self, why: str, now_ns: int) -> None:
        """Something happened to sequences outside of steps: whoever was running, and is not any more, was `why`."""
        for trace in list(self._traces.values()):
            for run in trace.runs.values():
                if run.sequence.is_finished:
                    self._end(trace, run, now_ns, "" if run.phase == "ended" else "aborted")
                elif run.sequence.status is SequenceStatus.PREEMPTED and run.phase in ("prefill", "decode"):
                    self._end_phase(trace, run, now_ns, why)
                    run.begin("queue", now_ns)

    def fail(self, failed: Iterable[tuple[Request, str]], now_ns: int) -> None:
        """Requests that were given up outside of steps, and why."""
        for request, reason in failed:
            self._end_request(request, now_ns, reason)

    def _find(self, sequence: RequestSequence) -> tuple[_RequestTrace, _Run] | None:
        if not sequence.request.trace_parent:
            return None
        trace = self._traces.get(sequence.request)
        run = None if trace is None else trace.runs.get(sequence.index)
        return None if trace is None or run is None else (trace, run)

    def _add_chunk(
        self, trace: _RequestTrace, run: _Run, plan: StepPlan, chunk: Chunk, times: StepTimes, now_ns: int
    ) -> None:
        """Of a sequence in its prefill, which ends when a token is sampled; other chunks are part of a decode."""
        # A step that was in flight when the sequence was preempted says nothing of it any more.
        if run.phase != "prefill" or plan.lane != run.lane:
            return
        run.chunks.append(_ComputedChunk(plan.step, plan.computed_tokens[chunk.row], chunk.num_new_tokens, times))
        if chunk.samples:
            self._end_phase(trace, run, now_ns)
            run.begin("decode", now_ns)
            self._beginning[plan.lane].append(run)

    def _end_request(self, request: Request, now_ns: int, error: str = "") -> None:
        if (trace := self._traces.get(request)) is not None:
            for run in trace.runs.values():
                self._end(trace, run, now_ns, error=error)

    def _end(self, trace: _RequestTrace, run: _Run, now_ns: int, event: str = "", *, error: str = "") -> None:
        if run.phase != "ended":
            self._end_phase(trace, run, now_ns, event, error=error)
            run.begin("ended", now_ns)
        if all(other.phase == "ended" for other in trace.runs.values()):
            self._traces.pop(trace.request, None)

    def _end_phase(self, trace: _RequestTrace, run: _Run, now_ns: int, event: str = "", *, error: str = "") -> None:
        """Makes the span of a phase, and those of what its executor computed."""
        num_new = len(run.sequence.token_ids) - run.num_tokens_before
        if run.phase == "decode" and num_new <= 0 and not event and not error:
            return  # the sequence had ended with its first token
        request, offset_ns = trace.request, trace.clock_offset_ns
        attributes: dict[str, Any] = {
            "gen_ai.request.id": request.request_id,
            "quire.attempt": request.attempt,
            "quire.sequence_index": run.sequence.index,
        }
        if run.phase != "queue":
            attributes["quire.executor"] = run.lane
        if run.phase == "prefill":
            attributes |= {
                "quire.num_prompt_tokens": run.sequence.num_prompt_tokens,
                "quire.num_cached_tokens": run.chunks[0].start if run.chunks else 0,
            }
        if run.phase == "decode":
            attributes["quire.num_tokens"] = num_new
        span = self._tracer.start_span(
            run.phase, trace.context, attributes=attributes, start_time=run.since_ns + offset_ns
        )
        if event:
            span.add_event(event, timestamp=now_ns + offset_ns)
        if error:
            span.set_status(Status(StatusCode.ERROR, error))
        self._add_executor_spans(span, run, offset_ns, num_new)
        span.end(now_ns + offset_ns)

    def _add_executor_spans(self, parent: Span, run: _Run, offset_ns: int, num_new: int) -> None:
        context, tracer = set_span_in_context(parent, Context()), self._executors[run.lane]
        for chunk in run.chunks:
            attributes = {
                "quire.step": chunk.step,
                "quire.start_position": chunk.start,
                "quire.num_tokens": chunk.num_tokens,
            }
            _add_span(tracer, "compute prefill", context, attributes, chunk.times, offset_ns)
        if run.phase == "decode" and run.decode_started_ns and num_new > 0:
            # A step gives a sequence one token.
            attributes = {"quire.num_steps": num_new, "quire.num_tokens": num_new}
            times = StepTimes(run.decode_started_ns, max(run.decode_started_ns, self._finished_ns[run.lane]))
            _add_span(tracer, "compute decode", context, attributes, times, offset_ns)


def _add_span(
    tracer: Tracer, name: str, context: Context, attributes: dict[str, int], times: StepTimes, offset_ns: int
) -> None:
    span = tracer.start_span(name, context, attributes=attributes, start_time=times.started_ns + offset_ns)
    span.end(times.finished_ns + offset_ns)
