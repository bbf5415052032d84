"""Answers a chat of one choice with its turn: whole, or as server-sent events that an API writes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from fastapi import Response

from quire.errors import QuireError, RequestAbortedError
from quire.gateway.chat.blocks import BlockEvent, TurnBlocks
from quire.gateway.chat.deltas import ChatDelta
from quire.gateway.streaming import EventStream
from quire.outputs import Usage

logger = logging.getLogger(__name__)


class TurnSource(Protocol):
    """A running chat of one choice; see ChatRun."""

    @property
    def usages(self) -> Sequence[Usage]:
        """Its only one, once it has ended."""

    def batches(self) -> AsyncGenerator[Sequence[tuple[int, ChatDelta]], None]:
        """(choice, what is new in it). Raises the QuireError that ends the run."""

    def close(self) -> None:
        """Aborts what still runs."""


class TurnWriter(Protocol):
    """How an API writes a turn: `whole`, or `opening`, `events`, and `closing` or `failure`. All give bytes."""

    def whole(self, turn: TurnBlocks, usage: Usage) -> bytes:
        """The JSON of a whole answer."""

    def opening(self) -> bytes:
        """The events before the first token."""

    def events(self, events: Sequence[BlockEvent]) -> bytes:
        """The events of what is new."""

    def closing(self, turn: TurnBlocks, usage: Usage) -> bytes:
        """The events after the last block."""

    def failure(self, turn: TurnBlocks, error: Exception) -> bytes:
        """The events that end a stream which failed."""


async def answer_turn(run: TurnSource, writer: TurnWriter, *, stream: bool) -> Response:
    """Answers with the run's only choice, and ends the run. Raises QuireError for a whole answer that fails."""
    if stream:
        return EventStream(_events(run, writer), run.close)
    try:
        return Response(await _whole(run, writer), media_type="application/json")
    finally:
        run.close()


async def _whole(run: TurnSource, writer: TurnWriter) -> bytes:
    turn = TurnBlocks()
    async with contextlib.aclosing(run.batches()) as batches:
        async for batch in batches:
            for _, delta in batch:
                turn.add(delta)
    _check_ended(turn)
    return writer.whole(turn, run.usages[0])


async def _events(run: TurnSource, writer: TurnWriter) -> AsyncGenerator[bytes, None]:
    turn = TurnBlocks()
    yield writer.opening()
    try:
        async with contextlib.aclosing(run.batches()) as batches:
            async for batch in batches:
                if events := [event for _, delta in batch for event in turn.add(delta)]:
                    yield writer.events(events)
        _check_ended(turn)
        yield writer.closing(turn, run.usages[0])
    except Exception as error:
        if not isinstance(error, QuireError):
            logger.exception("a stream failed")
        yield writer.failure(turn, error)


def _check_ended(turn: TurnBlocks) -> None:
    """Raises RequestAbortedError for a turn that the server ended early."""
    if turn.finish_reason == "abort":
        raise RequestAbortedError("the server aborted the request")
