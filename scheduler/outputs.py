"""What steps gave the gateways: events of one step, and per gateway one message for them."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from quire.internal.v1 import scheduler_pb2
from quire.scheduler.sequence import Request, Sequence, SequenceStatus
from quire.v1 import generate_pb2

_FINISH_REASONS: Final = {
    SequenceStatus.STOPPED: generate_pb2.FINISH_REASON_STOP,
    SequenceStatus.LENGTH_CAPPED: generate_pb2.FINISH_REASON_LENGTH,
    SequenceStatus.ABORTED: generate_pb2.FINISH_REASON_ABORT,
}


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """A sequence has one more token."""

    sequence: Sequence
    position: int
    token_id: int
    logprobs: generate_pb2.TokenLogprobs | None


@dataclass(slots=True)
class StepEvents:
    """What happened to sequences in one step, in order."""

    step: int
    tokens: list[TokenEvent] = field(default_factory=list)
    finished: list[Sequence] = field(default_factory=list)

    def add_token(self, sequence: Sequence, token_id: int, logprobs: generate_pb2.TokenLogprobs | None) -> None:
        """The sequence's newest token, which it already counts."""
        self.tokens.append(TokenEvent(sequence, sequence.num_output_tokens - 1, token_id, logprobs))

    def add_finished(self, sequence: Sequence) -> None:
        self.finished.append(sequence)


class GatewayOutputs:
    """The output stream of one gateway.

    Steps are merged while the gateway is slow to read, so at most one message waits; it is bounded by what the
    gateway's running requests may still generate.
    """

    def __init__(self) -> None:
        self._pending: _Columns | None = None
        self._changed = asyncio.Event()
        self._closed = False

    def of_step(self, step: int) -> _Columns:
        """The columns to write a step's events to; they are sent when the caller yields to the loop."""
        if self._pending is None:
            self._pending = _Columns()
            self._changed.set()
        self._pending.step = step
        return self._pending

    def close(self) -> None:
        """Ends the stream after what is pending."""
        self._closed = True
        self._changed.set()

    async def next_message(self) -> scheduler_pb2.StepOutputs | None:
        """Waits for a step; None when the stream is closed."""
        while self._pending is None:
            if self._closed:
                return None
            self._changed.clear()
            await self._changed.wait()
        columns, self._pending = self._pending, None
        return columns.to_proto()


class OutputRouter:
    """Hands a step's events to the gateways they belong to."""

    def __init__(self) -> None:
        self._gateways: dict[str, GatewayOutputs] = {}

    def open(self, gateway_id: str) -> GatewayOutputs:
        """A new stream for a gateway; an older one of the same gateway ends."""
        self.close(gateway_id)
        outputs = self._gateways[gateway_id] = GatewayOutputs()
        return outputs

    def close(self, gateway_id: str, outputs: GatewayOutputs | None = None) -> bool:
        """Ends a gateway's stream, if it has one (and it is `outputs`, if given); says whether it did."""
        current = self._gateways.get(gateway_id)
        if current is None or (outputs is not None and current is not outputs):
            return False
        del self._gateways[gateway_id]
        current.close()
        return True

    def close_all(self) -> None:
        for gateway_id in list(self._gateways):
            self.close(gateway_id)

    def is_open(self, gateway_id: str) -> bool:
        """Whether a gateway has a stream."""
        return gateway_id in self._gateways

    def publish(self, events: StepEvents) -> None:
        """Queues a step's events; those of a gateway that is gone are dropped."""
        for event in events.tokens:
            outputs = self._gateways.get(event.sequence.request.key.gateway_id)
            if outputs is not None:
                outputs.of_step(events.step).add_token(event)
        for sequence in events.finished:
            outputs = self._gateways.get(sequence.request.key.gateway_id)
            if outputs is not None:
                outputs.of_step(events.step).add_finished(sequence)


class _Columns:
    """A StepOutputs message in the making."""

    def __init__(self) -> None:
        self.step = 0
        self._request_keys = array("Q")
        self._sequence_indices = array("I")
        self._attempts = array("I")
        self._positions = array("I")
        self._token_ids = array("I")
        self._logprobs: list[scheduler_pb2.RowLogprobs] = []
        self._finished: list[scheduler_pb2.SequenceFinished] = []
        self._started: list[scheduler_pb2.RequestStarted] = []

    def add_token(self, event: TokenEvent) -> None:
        request = event.sequence.request
        self._started.extend(_report_start(request))
        if event.logprobs is not None:
            row = len(self._token_ids)
            self._logprobs.append(scheduler_pb2.RowLogprobs(row=row, logprobs=event.logprobs))
        self._request_keys.append(request.key.number)
        self._sequence_indices.append(event.sequence.index)
        self._attempts.append(request.attempt)
        self._positions.append(event.position)
        self._token_ids.append(event.token_id)

    def add_finished(self, sequence: Sequence) -> None:
        request = sequence.request
        finished = scheduler_pb2.SequenceFinished(
            request_key=request.key.number,
            sequence_index=sequence.index,
            attempt=request.attempt,
            reason=_FINISH_REASONS[sequence.status],
        )
        newest = sequence.token_ids[-1]
        if sequence.status is SequenceStatus.STOPPED and newest in request.params.stop_token_ids:
            finished.stop_token_id = newest
        self._finished.append(finished)

    def to_proto(self) -> scheduler_pb2.StepOutputs:
        return scheduler_pb2.StepOutputs(
            step=self.step,
            request_keys=self._request_keys.tobytes(),
            sequence_indices=self._sequence_indices.tobytes(),
            attempts=self._attempts.tobytes(),
            positions=self._positions.tobytes(),
            token_ids=self._token_ids.tobytes(),
            logprobs=self._logprobs,
            finished=self._finished,
            started=self._started,
        )


def _report_start(request: Request) -> Iterator[scheduler_pb2.RequestStarted]:
    """Once per request, with its first token."""
    if not request.start_reported:
        request.start_reported = True
        yield scheduler_pb2.RequestStarted(
            request_key=request.key.number,
            attempt=request.attempt,
            cached_tokens=request.num_cached_tokens or 0,
        )
