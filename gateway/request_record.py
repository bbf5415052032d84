"""What became of a request, and when: metrics, traces and the log are made of it, once, at its end.

One record per prompt. Times are seconds of this process's monotonic clock; `None` where it did not come to that.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from quire.errors import QuireError
from quire.gateway.origin import Origin
from quire.gateway.tenants import Tenant
from quire.gateway.validation import RequestContext
from quire.outputs import FinishReason
from quire.v1 import generate_pb2

# As OpenTelemetry's conventions for generative AI call it.
Operation: TypeAlias = Literal["chat", "text_completion", "embeddings"]


@dataclass(slots=True)
class RequestRecord:
    """One prompt, from its arrival to its end."""

    request_id: str
    tenant: Tenant
    num_prompt_tokens: int
    # Of the prompt, over all its sequences: those that clients asked for, or that `best_of` asked for.
    num_sequences: int
    # The longest output that was asked for, in tokens; 0 for an embedding.
    max_tokens: int
    arrived_s: float
    origin: Origin = field(default_factory=Origin)
    operation: Operation = "text_completion"
    # As they are resolved; None for an embedding.
    params: generate_pb2.SamplingParams | None = None
    # Prompt and outputs (by sequence, in pieces): only for --log-prompts.
    prompt: str | Sequence[int] | None = None
    outputs: dict[int, list[str]] | None = None
    # Of its own span, if it is traced: W3C `traceparent`, the span, and what makes a time since the epoch of our clock.
    trace_parent: str = ""
    span: Any = None
    clock_offset_ns: int = 0
    submitted_s: float = 0.0
    # How long the scheduler's queue held it before its first step.
    queued_s: float = 0.0
    first_token_s: float | None = None
    last_token_s: float | None = None
    ended_s: float | None = None
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    # Of the sequences that have ended, in the order of their ends.
    finish_reasons: list[FinishReason] = field(default_factory=list)
    # Of each sequence, in tokens.
    output_lengths: list[int] = field(default_factory=list)
    # What ended it before its time.
    error: QuireError | None = None
    # How often a scheduler was given it: once, unless one was lost.
    num_attempts: int = 1

    @property
    def time_to_first_token_s(self) -> float | None:
        """From arrival."""
        return None if self.first_token_s is None else self.first_token_s - self.arrived_s

    @property
    def scheduled_s(self) -> float:
        """When its first step was planned."""
        return self.submitted_s + self.queued_s

    @property
    def total_s(self) -> float:
        """From arrival to the end."""
        return (time.monotonic() if self.ended_s is None else self.ended_s) - self.arrived_s

    @property
    def output_tokens_per_s(self) -> float:
        """From arrival to the end."""
        return self.num_output_tokens / max(self.total_s, 1e-9)

    @property
    def mean_inter_token_s(self) -> float | None:
        """Between the tokens of a sequence, where there were several."""
        num_intervals = self.num_output_tokens - self.num_sequences
        if self.first_token_s is None or self.last_token_s is None or num_intervals < 1:
            return None
        return (self.last_token_s - self.first_token_s) * self.num_sequences / num_intervals


class RequestObserver(Protocol):
    """Is told of every request of an engine, on its event loop; must be quick and must not raise."""

    def on_tokens(self, record: RequestRecord, num_tokens: int, interval_s: float | None) -> None:
        """A chunk has come: `interval_s` after the one before, None for the first (see `record.first_token_s`)."""

    def on_end(self, record: RequestRecord) -> None:
        """The record is complete."""


class RequestTracer(Protocol):
    """Begins the span of a request."""

    def begin(self, record: RequestRecord) -> None:
        """Sets `record.trace_parent` if the request is traced."""

    def on_end(self, record: RequestRecord) -> None:
        """The record is complete, be it that the scheduler has refused the request."""


class Recorder:
    """Begins the records of an engine's requests."""

    def __init__(self) -> None:
        # Are told of every request; add before the first one.
        self.observers: list[RequestObserver] = []
        self.tracer: RequestTracer | None = None
        # Whether records hold prompts and outputs.
        self.keeps_text = False

    def begin(
        self,
        context: RequestContext,
        prompt: str | Sequence[int],
        num_prompt_tokens: int,
        operation: Operation,
        params: generate_pb2.SamplingParams | None = None,
        num_sequences: int = 1,
    ) -> RecordKeeper:
        """For a request that is about to be submitted."""
        record = RequestRecord(
            request_id=context.request_id,
            tenant=context.tenant,
            num_prompt_tokens=num_prompt_tokens,
            num_sequences=num_sequences,
            max_tokens=0 if params is None else params.max_tokens,
            arrived_s=context.arrived_s,
            origin=context.origin,
            operation=operation,
            params=params,
        )
        if self.keeps_text:
            record.prompt, record.outputs = prompt, {}
        if self.tracer is not None:
            self.tracer.begin(record)
        return RecordKeeper(record, self.observers, self.tracer)


class RecordKeeper:
    """Writes one record and tells the observers."""

    __slots__ = ("_observers", "_tracer", "record")

    def __init__(
        self, record: RequestRecord, observers: Sequence[RequestObserver], tracer: RequestTracer | None = None
    ) -> None:
        self.record = record
        self._observers = observers
        self._tracer = tracer

    def refused(self, error: QuireError) -> None:
        """The scheduler does not take it: that is no request for the observers."""
        self.record.ended_s, self.record.error = time.monotonic(), error
        if self._tracer is not None:
            self._tracer.on_end(self.record)

    def submitted(self) -> None:
        """The scheduler has it."""
        self.record.submitted_s = time.monotonic()

    def started(self, num_cached_tokens: int, queued_s: float) -> None:
        """The scheduler has said how it began."""
        self.record.num_cached_tokens, self.record.queued_s = num_cached_tokens, queued_s

    def tokens(self, num_tokens: int) -> None:
        """So many tokens came together, of all sequences."""
        now, record = time.monotonic(), self.record
        record.num_output_tokens += num_tokens
        last, record.last_token_s = record.last_token_s, now
        if last is None:
            record.first_token_s = now
        interval = None if last is None else now - last
        for observer in self._observers:
            observer.on_tokens(record, num_tokens, interval)

    def text(self, index: int, piece: str) -> None:
        """What a sequence's output goes on with."""
        if self.record.outputs is not None:
            self.record.outputs.setdefault(index, []).append(piece)

    def end(
        self, reasons: Iterable[FinishReason], output_lengths: Iterable[int] = (), error: QuireError | None = None
    ) -> None:
        """Nothing more comes; only the first call counts."""
        record = self.record
        if record.ended_s is not None:
            return
        record.ended_s = time.monotonic()
        record.finish_reasons.extend(reasons)
        record.output_lengths.extend(output_lengths)
        record.error = error
        for observer in self._observers:
            observer.on_end(record)
        if self._tracer is not None:
            self._tracer.on_end(record)
