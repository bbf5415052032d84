"""One choice of a chat: takes its text apart into thought, content and calls."""

from __future__ import annotations

from quire.gateway.chat.deltas import ChatDelta, ChatFinishReason
from quire.gateway.chat.reasoning import ReasoningParser
from quire.gateway.chat.tool_parsers.base import ToolParser, ToolText
from quire.outputs import CompletionDelta


class TurnParser:
    """Thought comes first, and a call inside of it is a thought."""

    def __init__(self, reasoning: ReasoningParser | None, tools: ToolParser | None) -> None:
        """None for a turn that has none."""
        self._reasoning = reasoning
        self._tools = tools
        self._has_called = False

    def advance(self, part: CompletionDelta) -> ChatDelta:
        """What a part of the generation adds to the turn."""
        is_last = part.finish_reason is not None
        thought, text = ("", part.text) if self._reasoning is None else self._split(self._reasoning, part.text, is_last)
        said = ToolText(text) if self._tools is None else self._read(self._tools, text, is_last)
        self._has_called = self._has_called or bool(said.tool_calls)
        return ChatDelta(
            index=part.index,
            content=said.content,
            reasoning_content=thought,
            tool_calls=said.tool_calls,
            token_ids=part.token_ids,
            logprobs=part.logprobs,
            finish_reason=self._finish_reason(part),
            stop_reason=part.stop_reason,
            cumulative_logprob=part.cumulative_logprob,
        )

    def _finish_reason(self, part: CompletionDelta) -> ChatFinishReason | None:
        # A call that was cut ends with length.
        return "tool_calls" if part.finish_reason == "stop" and self._has_called else part.finish_reason

    @staticmethod
    def _split(parser: ReasoningParser, text: str, is_last: bool) -> tuple[str, str]:
        thought, answer = parser.push(text)
        if is_last:
            last_thought, last_answer = parser.finish()
            return thought + last_thought, answer + last_answer
        return thought, answer

    @staticmethod
    def _read(parser: ToolParser, text: str, is_last: bool) -> ToolText:
        said = parser.push(text)
        # The end adds no calls: what has not become one by then is content.
        return ToolText(said.content + parser.finish().content, said.tool_calls) if is_last else said
