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

    def advance(self, part: CompletionDelta) -> list[ChatDelta]:
        """What a part of the generation adds to the turn, in its order: mostly one delta, at least one.

        The first has the tokens, the last the end.
        """
        is_last = part.finish_reason is not None
        thought, text = ("", part.text) if self._reasoning is None else self._split(self._reasoning, part.text, is_last)
        said = [ToolText(text)] if self._tools is None else self._read(self._tools, text, is_last)
        self._has_called = self._has_called or any(entry.tool_calls for entry in said)
        said = said or [ToolText()]
        last = len(said) - 1
        return [
            ChatDelta(
                index=part.index,
                content=entry.content,
                reasoning_content="" if number else thought,
                tool_calls=entry.tool_calls,
                token_ids=() if number else part.token_ids,
                logprobs=() if number and part.logprobs is not None else part.logprobs,
                finish_reason=self._finish_reason(part) if number == last else None,
                stop_reason=part.stop_reason if number == last else None,
                cumulative_logprob=part.cumulative_logprob if number == last else None,
            )
            for number, entry in enumerate(said)
        ]

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
    def _read(parser: ToolParser, text: str, is_last: bool) -> list[ToolText]:
        said = parser.push(text)
        return said + parser.finish() if is_last else said
