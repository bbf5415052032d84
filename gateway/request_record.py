"""What became of a request, and when: metrics, traces and the log are made of it, once, at its end.

One record per prompt. Times are seconds of this process's monotonic clock; `None` where it did not come to that.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from quire.errors import QuireError
from quire.gateway.tenants import Tenant
from quire.gateway.validation import RequestContext
from quire.outputs import FinishReason


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
    # W3C `traceparent` of the caller, or empty.
    trace_parent: str = ""
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

    @classmethod
    def of(
        cls, context: RequestContext, prompt_token_ids: Sequence[int], num_sequences: int, max_tokens: int
    ) -> RequestRecord:
        """The record of a request that is about to be submitted."""
        return cls(
            request_id=context.request_id,
            tenant=context.tenant,
            num_prompt_tokens=len(prompt_token_ids),
            num_sequences=num_sequences,
            max_tokens=max_tokens,
            arrived_s=context.arrived_s,
            trace_parent=context.trace_parent,
        )

    @property
    def time_to_first_token_s(self) -> float | None:
        """From arrival."""
        return None if self.first_token_s is None else self.first_token_s - self.arrived_s

    @property
    def scheduled_s(self) -> float:
        """When its first step was planned."""
        return self.submitted_s + self.queued_s


class RequestObserver(Protocol):
    """Is told of every request of an engine, on its event loop; must be quick and must not raise."""

    def on_tokens(self, record: RequestRecord, num_tokens: int, interval_s: float | None) -> None:
        """A chunk has come: `interval_s` after the one before, None for the first (see `record.first_token_s`)."""

    def on_end(self, record: RequestRecord) -> None:
        """The record is complete."""


class RecordKeeper:
    """Writes one record and tells the observers."""

    __slots__ = ("_observers", "record")

    def __init__(self, record: RequestRecord, observers: Sequence[RequestObserver]) -> None:
        self.record = record
        self._observers = observers

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
