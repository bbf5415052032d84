"""The events of a streamed response, in the order that OpenAI's clients expect.

A response is created; each of its items is added, filled and done, one after the other; the response ends with all of
them. Within an item that has parts, its one part goes the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

from quire.errors import QuireError
from quire.gateway.chat.blocks import Block, BlockEnded, BlockEvent, BlockGrew, BlockStarted, TurnBlocks
from quire.gateway.openai.responses.answer import ResponseAnswer
from quire.gateway.openai.responses.objects import OutputItem, ReasoningPart, ResponseObject, TextPart
from quire.gateway.openai.token_logprobs import TokenLogprobFrame
from quire.gateway.sse import encode, named_event
from quire.outputs import Usage


class Event(Struct, kw_only=True, tag_field="type"):
    """What all events have; the writer sets the number."""

    sequence_number: int = 0


class ResponseCreated(Event, tag="response.created"):
    """The first."""

    response: ResponseObject


class ResponseInProgress(Event, tag="response.in_progress"):
    """The second."""

    response: ResponseObject


class ResponseCompleted(Event, tag="response.completed"):
    """The last, if all went well."""

    response: ResponseObject


class ResponseIncomplete(Event, tag="response.incomplete"):
    """The last, if the answer was cut."""

    response: ResponseObject


class ResponseFailed(Event, tag="response.failed"):
    """The last, if it failed."""

    response: ResponseObject


class ErrorEvent(Event, tag="error"):
    """Why it failed; the next and last event is ResponseFailed."""

    code: str
    message: str
    param: str | None


class OutputItemAdded(Event, tag="response.output_item.added"):
    """An item without content."""

    output_index: int
    item: OutputItem


class OutputItemDone(Event, tag="response.output_item.done"):
    """A whole item."""

    output_index: int
    item: OutputItem


class PartEvent(Event, kw_only=True):
    """About an item's only part."""

    item_id: str
    output_index: int
    content_index: int = 0


class ContentPartAdded(PartEvent, tag="response.content_part.added"):
    """An empty part."""

    part: ReasoningPart | TextPart


class ContentPartDone(PartEvent, tag="response.content_part.done"):
    """A whole part."""

    part: ReasoningPart | TextPart


class OutputTextDelta(PartEvent, tag="response.output_text.delta"):
    """What is new in a message."""

    delta: str
    logprobs: Sequence[TokenLogprobFrame]


class OutputTextDone(PartEvent, tag="response.output_text.done"):
    """All of a message's text."""

    text: str
    logprobs: Sequence[TokenLogprobFrame]


class ReasoningTextDelta(PartEvent, tag="response.reasoning_text.delta"):
    """What is new in the thoughts."""

    delta: str


class ReasoningTextDone(PartEvent, tag="response.reasoning_text.done"):
    """All thoughts of an item."""

    text: str


class ArgumentsDelta(Event, tag="response.function_call_arguments.delta"):
    """What is new in a call's JSON."""

    item_id: str
    output_index: int
    delta: str


class ArgumentsDone(Event, tag="response.function_call_arguments.done"):
    """All of a call's JSON."""

    item_id: str
    output_index: int
    name: str
    arguments: str


class ResponseWriter:
    """Writes one response; see TurnWriter."""

    def __init__(self, answer: ResponseAnswer) -> None:
        self._answer = answer
        self._num_events = 0

    def whole(self, turn: TurnBlocks, usage: Usage) -> bytes:
        """See TurnWriter."""
        return encode(self._answer.ended(turn, usage))

    def opening(self) -> bytes:
        """See TurnWriter."""
        response = self._answer.running
        return self._write(ResponseCreated(response=response)) + self._write(ResponseInProgress(response=response))

    def events(self, events: Sequence[BlockEvent]) -> bytes:
        """See TurnWriter."""
        return b"".join([self._write(written) for event in events for written in self._events(event)])

    def closing(self, turn: TurnBlocks, usage: Usage) -> bytes:
        """See TurnWriter."""
        response = self._answer.ended(turn, usage)
        last = ResponseCompleted if response.status == "completed" else ResponseIncomplete
        return self._write(last(response=response))

    def failure(self, turn: TurnBlocks, error: Exception) -> bytes:
        """See TurnWriter; what is not a QuireError is a defect, and its text stays inside."""
        if not isinstance(error, QuireError):
            error = QuireError("internal error")
        reason = ErrorEvent(code=error.code, message=error.message, param=error.field)
        return self._write(reason) + self._write(ResponseFailed(response=self._answer.failed(turn, error)))

    def _write(self, event: Event) -> bytes:
        event.sequence_number = self._num_events
        self._num_events += 1
        return named_event(event)

    def _events(self, event: BlockEvent) -> Iterator[Event]:
        block = event.block
        match event:
            case BlockGrew(text=text) if block.kind == "call":
                yield ArgumentsDelta(item_id=self._answer.item_id(block), output_index=block.index, delta=text)
            case BlockGrew(text=text) if block.kind == "reasoning":
                yield ReasoningTextDelta(item_id=self._answer.item_id(block), output_index=block.index, delta=text)
            case BlockGrew(text=text, logprobs=positions):
                yield OutputTextDelta(
                    item_id=self._answer.item_id(block),
                    output_index=block.index,
                    delta=text,
                    logprobs=self._answer.logprobs(positions),
                )
            case BlockStarted():
                yield from self._started(block)
            case BlockEnded():
                yield from self._ended(block)

    def _started(self, block: Block) -> Iterator[Event]:
        yield OutputItemAdded(output_index=block.index, item=self._answer.new_item(block))
        if block.kind != "call":
            part = TextPart("") if block.kind == "text" else ReasoningPart("")
            yield ContentPartAdded(item_id=self._answer.item_id(block), output_index=block.index, part=part)

    def _ended(self, block: Block) -> Iterator[Event]:
        item_id, index, text = self._answer.item_id(block), block.index, block.text
        if block.kind == "call":
            yield ArgumentsDone(item_id=item_id, output_index=index, name=block.name, arguments=text)
        elif block.kind == "reasoning":
            yield ReasoningTextDone(item_id=item_id, output_index=index, text=text)
            yield ContentPartDone(item_id=item_id, output_index=index, part=ReasoningPart(text))
        else:
            part = self._answer.text_part(block)
            yield OutputTextDone(item_id=item_id, output_index=index, text=text, logprobs=part.logprobs)
            yield ContentPartDone(item_id=item_id, output_index=index, part=part)
        yield OutputItemDone(output_index=index, item=self._answer.item(block))
