"""The events of a streamed message: it starts, its blocks start, grow and stop one after the other, it stops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from quire.gateway.anthropic.answer import (
    Content,
    MessageObject,
    MessageUsage,
    StopReason,
    content,
    new_content,
    stop_of,
)
from quire.gateway.anthropic.errors import error_frame
from quire.gateway.chat.blocks import BlockEvent, BlockGrew, BlockKind, BlockStarted, TurnBlocks
from quire.gateway.sse import encode, named_event
from quire.outputs import Usage


class MessageStart(Struct, tag_field="type", tag="message_start"):
    """The first: a message without content. What the cache had is known at the end only."""

    message: MessageObject


class Ping(Struct, tag_field="type", tag="ping"):
    """The connection is alive."""


class ContentBlockStart(Struct, tag_field="type", tag="content_block_start"):
    """An empty block."""

    index: int
    content_block: Content


class TextDelta(Struct, tag_field="type", tag="text_delta"):
    """New words."""

    text: str


class ThinkingDelta(Struct, tag_field="type", tag="thinking_delta"):
    """New thoughts."""

    thinking: str


class InputJsonDelta(Struct, tag_field="type", tag="input_json_delta"):
    """What is new in a call's JSON."""

    partial_json: str


class ContentBlockDelta(Struct, tag_field="type", tag="content_block_delta"):
    """What is new in a block."""

    index: int
    delta: TextDelta | ThinkingDelta | InputJsonDelta


class ContentBlockStop(Struct, tag_field="type", tag="content_block_stop"):
    """A block is whole."""

    index: int


class Stop(Struct):
    """Why a message ended."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(Struct, tag_field="type", tag="message_delta"):
    """The last but one: how it ended."""

    delta: Stop
    usage: MessageUsage


class MessageStop(Struct, tag_field="type", tag="message_stop"):
    """The last."""


_Delta = TextDelta | ThinkingDelta | InputJsonDelta
_DELTAS: Mapping[BlockKind, Callable[[str], _Delta]] = {
    "text": TextDelta,
    "reasoning": ThinkingDelta,
    "call": InputJsonDelta,
}


class MessageWriter:
    """Writes one message; see TurnWriter."""

    def __init__(self, request_id: str, model: str, prompt_tokens: int) -> None:
        self._request_id = request_id
        self._id = f"msg_{request_id}"
        self._model = model
        self._prompt_tokens = prompt_tokens

    def whole(self, turn: TurnBlocks, usage: Usage) -> bytes:
        """See TurnWriter."""
        reason, sequence = stop_of(turn)
        return encode(
            MessageObject(
                id=self._id,
                model=self._model,
                content=[content(block) for block in turn.blocks],
                stop_reason=reason,
                stop_sequence=sequence,
                usage=MessageUsage.of(turn, usage),
            )
        )

    def opening(self) -> bytes:
        """See TurnWriter."""
        message = MessageObject(id=self._id, model=self._model, usage=MessageUsage(self._prompt_tokens, 0))
        return named_event(MessageStart(message)) + named_event(Ping())

    def events(self, events: Sequence[BlockEvent]) -> bytes:
        """See TurnWriter."""
        return b"".join([named_event(_event(event)) for event in events])

    def closing(self, turn: TurnBlocks, usage: Usage) -> bytes:
        """See TurnWriter."""
        ending = MessageDelta(Stop(*stop_of(turn)), MessageUsage.of(turn, usage))
        return named_event(ending) + named_event(MessageStop())

    def failure(self, turn: TurnBlocks, error: Exception) -> bytes:
        """See TurnWriter."""
        return named_event(error_frame(error, self._request_id))


def _event(event: BlockEvent) -> Struct:
    block = event.block
    if isinstance(event, BlockGrew):
        return ContentBlockDelta(block.index, _DELTAS[block.kind](event.text))
    if isinstance(event, BlockStarted):
        return ContentBlockStart(block.index, new_content(block))
    return ContentBlockStop(block.index)
