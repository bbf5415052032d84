"""The message object, made from the turn that it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

from quire.gateway.chat.blocks import Block, TurnBlocks
from quire.outputs import Usage

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class TextContent(Struct, tag_field="type", tag="text"):
    """Words."""

    text: str


class ThinkingContent(Struct, tag_field="type", tag="thinking"):
    """Thoughts. Nothing is signed: the server that gets them back believes them."""

    thinking: str
    signature: str = ""


class ToolUseContent(Struct, tag_field="type", tag="tool_use"):
    """A call."""

    id: str
    name: str
    input: Mapping[str, Any]


Content = TextContent | ThinkingContent | ToolUseContent


class OutputDetails(Struct):
    """What the output's tokens were for."""

    thinking_tokens: int


class MessageUsage(Struct):
    """`usage`. The whole prompt has the sum of the three kinds of input tokens; nothing is charged for keeping it."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    output_tokens_details: OutputDetails | None = None

    @classmethod
    def of(cls, turn: TurnBlocks, usage: Usage) -> MessageUsage:
        """At the end."""
        details = OutputDetails(turn.reasoning_tokens)
        fresh = usage.prompt_tokens - usage.cached_tokens
        return cls(fresh, usage.completion_tokens, usage.cached_tokens, output_tokens_details=details)


class MessageObject(Struct, tag_field="type", tag="message", kw_only=True):
    """A message of the assistant's."""

    id: str
    role: str = "assistant"
    model: str
    content: Sequence[Content] = ()
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessageUsage


def new_content(block: Block) -> Content:
    """A block before anything is in it."""
    if block.kind == "call":
        return ToolUseContent(block.call_id, block.name, {})
    return TextContent("") if block.kind == "text" else ThinkingContent("")


def content(block: Block) -> Content:
    """A block as it stands, at its end."""
    if block.kind == "call":
        return ToolUseContent(block.call_id, block.name, _parse_object(block.text))
    return TextContent(block.text) if block.kind == "text" else ThinkingContent(block.text)


def stop_of(turn: TurnBlocks) -> tuple[StopReason, str | None]:
    """Why the turn ended, and the stop sequence if it was one."""
    if turn.finish_reason == "tool_calls":
        return "tool_use", None
    if turn.finish_reason == "length":
        return "max_tokens", None
    return ("stop_sequence", turn.stop_reason) if isinstance(turn.stop_reason, str) else ("end_turn", None)


def _parse_object(text: str) -> Mapping[str, Any]:
    """A call's arguments. Those that max_tokens cut are no JSON, and the API has no place for half an object."""
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(arguments, dict):
        return {}
    # Half of a surrogate pair, which JSON can escape and UTF-8 cannot hold, becomes a question mark.
    whole: Mapping[str, Any] = json.loads(json.dumps(arguments, ensure_ascii=False).encode(errors="replace"))
    return whole
