"""What steps gave the gateways: events of one step, and per gateway one message for them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence as Column
from dataclasses import dataclass, field
from typing import Final

from quire.columns import pack_u32, pack_u64
from quire.internal.v1 import executor_pb2, scheduler_pb2
from quire.scheduler.sequence import Request, Sequence, SequenceStatus
from quire.v1 import generate_pb2

_FINISH_REASONS: Final = {
    SequenceStatus.STOPPED: generate_pb2.FINISH_REASON_STOP,
    SequenceStatus.LENGTH_CAPPED: generate_pb2.FINISH_REASON_LENGTH,
    SequenceStatus.ABORTED: generate_pb2.FINISH_REASON_ABORT,
}


@dataclass(slots=True)
class StepEvents:
    """What happened to sequences in one step, in order."""

    step: int
    # Requests that have their first token.
    started: list[Request] = field(default_factory=list)
    # Of the tokens whose requests asked for them, by row of the columns.
    logprobs: dict[int, generate_pb2.TokenLogprobs] = field(default_factory=dict)
    # Columns with one row per new token; its position is that in the sequence's output.
    sequences: list[Sequence] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finished: list[Sequence] = field(default_factory=list)
    # What else was read off the step.
    prompt_logprobs: list[tuple[Request, executor_pb2.PromptLogprobs]] = field(default_factory=list)
    embeddings: list[tuple[Request, bytes]] = field(default_factory=list)
    # Requests that cannot go on, and why; all of their sequences have ended.
    failed: list[tuple[Request, str]] = field(default_factory=list)

    def add_output(self, sequence: Sequence) -> None:
        """The whole output of a sequence that has ended."""
        output = sequence.token_ids[sequence.num_prompt_tokens :]
        self.sequences.extend([sequence] * len(output))
        self.positions.extend(range(len(output)))
        self.token_ids.extend(output)
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

    def announce(self, state: scheduler_pb2.SchedulerState) -> None:
        """Tells the gateway how the executors are; of several states that wait the latest counts."""
        self.of_step(self._pending.step if self._pending else 0).set_state(state)

    def close(self) -> None:
        """Ends the stream after what is pending."""
        self._closed = True
        self._changed.set()

    def take(self) -> scheduler_pb2.StepOutputs | None:
        """What is pending, if anything."""
        if self._pending is None:
            return None
        columns, self._pending = self._pending, None
        return columns.to_proto()

    async def next_message(self) -> scheduler_pb2.StepOutputs | None:
        """Waits for a step; None when the stream is closed."""
        while (message := self.take()) is None:
            if self._closed:
                return None
            self._changed.clear()
            await self._changed.wait()
        return message


class OutputRouter:
    """Hands a step's events to the gateways they belong to."""

    def __init__(self) -> None:
        self._gateways: dict[str, GatewayOutputs] = {}
        self._state: scheduler_pb2.SchedulerState | None = None
        self._addresses = _Addresses([])

    @property
    def num_gateways(self) -> int:
        """Gateways that have a stream."""
        return len(self._gateways)

    def open(self, gateway_id: str) -> GatewayOutputs:
        """A new stream for a gateway; an older one of the same gateway ends."""
        self.close(gateway_id)
        outputs = self._gateways[gateway_id] = GatewayOutputs()
        if self._state is not None:
            outputs.announce(self._state)
        return outputs

    def announce(self, state: scheduler_pb2.SchedulerState) -> None:
        """Tells all gateways how the executors are, and each that comes later."""
        self._state = state
        for outputs in self._gateways.values():
            outputs.announce(state)

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
        # Mostly the same sequences get a token as in the step before. Comparing is cheaper than addressing.
        if events.sequences != self._addresses.sequences:
            self._addresses = _Addresses(events.sequences)
        for gateway_id, address in self._addresses.by_gateway.items():
            if (outputs := self._gateways.get(gateway_id)) is not None:
                outputs.of_step(events.step).add_tokens(address, events)
        for request in events.started:
            if (outputs := self._gateways.get(request.key.gateway_id)) is not None:
                outputs.of_step(events.step).add_started(request)
        for sequence in events.finished:
            if (outputs := self._gateways.get(sequence.request.key.gateway_id)) is not None:
                outputs.of_step(events.step).add_finished(sequence)
        for request, entry in events.prompt_logprobs:
            if (outputs := self._gateways.get(request.key.gateway_id)) is not None:
                outputs.of_step(events.step).add_prompt_logprobs(request, entry)
        for request, values in events.embeddings:
            if (outputs := self._gateways.get(request.key.gateway_id)) is not None:
                outputs.of_step(events.step).add_embedding(request, values)
        for request, reason in events.failed:
            if (outputs := self._gateways.get(request.key.gateway_id)) is not None:
                outputs.of_step(events.step).add_failed(request, reason)


class _Address:
    """Whom the tokens of one gateway are for: what does not change from one step to the next, packed."""

    def __init__(self, sequences: list[Sequence], rows: list[int] | None) -> None:
        # Rows of the step's columns; None means all.
        self.rows = rows
        own = sequences if rows is None else [sequences[row] for row in rows]
        # Request keys, sequence indices, attempts.
        self.columns = (
            pack_u64([sequence.request.key.number for sequence in own]),
            pack_u32([sequence.index for sequence in own]),
            pack_u32([sequence.request.attempt for sequence in own]),
        )

    def pick(self, column: Column[int]) -> Column[int]:
        """The gateway's rows of a column."""
        return column if self.rows is None else [column[row] for row in self.rows]


class _Addresses:
    """The addresses of a step's tokens."""

    def __init__(self, sequences: list[Sequence]) -> None:
        self.sequences = sequences
        rows: dict[str, list[int]] = {}
        for row, sequence in enumerate(sequences):
            rows.setdefault(sequence.request.key.gateway_id, []).append(row)
        alone = len(rows) == 1
        self.by_gateway = {gateway_id: _Address(sequences, None if alone else own) for gateway_id, own in rows.items()}


class _Columns:
    """A StepOutputs message in the making: sub-messages are in it already, columns wait to be joined."""

    def __init__(self) -> None:
        self.step = 0
        self._message = scheduler_pb2.StepOutputs()
        self._num_tokens = 0
        # Per step: request keys, sequence indices, attempts, positions and token ids.
        self._parts: list[tuple[bytes, bytes, bytes, bytes, bytes]] = []

    def add_tokens(self, address: _Address, events: StepEvents) -> None:
        """Adds those of a step's tokens that are for the address."""
        token_ids = address.pick(events.token_ids)
        self._parts.append((*address.columns, pack_u32(address.pick(events.positions)), pack_u32(token_ids)))
        if events.logprobs:
            for row, event_row in enumerate(address.pick(range(len(events.token_ids))), start=self._num_tokens):
                if (logprobs := events.logprobs.get(event_row)) is not None:
                    self._message.logprobs.add(row=row, logprobs=logprobs)
        self._num_tokens += len(token_ids)

    def set_state(self, state: scheduler_pb2.SchedulerState) -> None:
        self._message.state.CopyFrom(state)

    def add_started(self, request: Request) -> None:
        self._message.started.add(
            request_key=request.key.number,
            attempt=request.attempt,
            cached_tokens=request.num_cached_tokens or 0,
            queue_time_ns=max(0, request.first_planned_ns - request.submitted_ns),
        )

    def add_finished(self, sequence: Sequence) -> None:
        request = sequence.request
        finished = self._message.finished.add(
            request_key=request.key.number,
            sequence_index=sequence.index,
            attempt=request.attempt,
            reason=_FINISH_REASONS[sequence.status],
        )
        if sequence.beams is not None:
            finished.cumulative_logprob = sequence.cumulative_logprob
        newest = sequence.token_ids[-1]
        if sequence.status is SequenceStatus.STOPPED and newest in request.params.stop_token_ids:
            finished.stop_token_id = newest

    def add_prompt_logprobs(self, request: Request, entry: executor_pb2.PromptLogprobs) -> None:
        self._message.prompt_logprobs.add(
            request_key=request.key.number, attempt=request.attempt, start=entry.start, positions=entry.positions
        )

    def add_embedding(self, request: Request, values: bytes) -> None:
        self._message.embeddings.add(request_key=request.key.number, attempt=request.attempt, values=values)

    def add_failed(self, request: Request, reason: str) -> None:
        self._message.failed.add(request_key=request.key.number, attempt=request.attempt, message=reason)

    def to_proto(self) -> scheduler_pb2.StepOutputs:
        message = self._message
        message.step = self.step
        if self._parts:
            keys, indices, attempts, positions, token_ids = map(b"".join, zip(*self._parts, strict=True))
            message.request_keys, message.sequence_indices, message.attempts = keys, indices, attempts
            message.positions, message.token_ids = positions, token_ids
        return message
