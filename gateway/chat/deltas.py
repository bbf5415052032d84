"""An assistant's turn as it comes: text, thought and tool calls."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from quire.outputs import FinishReason, TokenLogprobs, ToolCallDelta

__all__ = ["ChatDelta", "ChatFinishReason", "ToolCallDelta", "merge_chat_deltas"]

# tool_calls: the turn is complete and calls tools. A call that max_tokens cut ends with length.
ChatFinishReason = FinishReason


class ChatDelta(Struct, frozen=True):
    """What is new in one choice's turn."""

    index: int
    content: str = ""
    reasoning_content: str = ""
    tool_calls: Sequence[ToolCallDelta] = ()
    # Tokens may run ahead of what they say.
    token_ids: Sequence[int] = ()
    # One per token id, if asked for.
    logprobs: Sequence[TokenLogprobs] | None = None
    finish_reason: ChatFinishReason | None = None
    # The stop string or stop token of the request that ended it.
    stop_reason: str | int | None = None
    # Of beam search and best_of, at the end: the sum of all its tokens' logprobs.
    cumulative_logprob: float | None = None


def merge_chat_deltas(deltas: Sequence[ChatDelta]) -> ChatDelta:
    """Successive deltas of one choice (at least one) as a single one."""
    last = deltas[-1]
    calls: dict[int, ToolCallDelta] = {}
    for delta in deltas:
        for new in delta.tool_calls:
            old = calls.get(new.index)
            calls[new.index] = (
                new if old is None else ToolCallDelta(new.index, old.arguments + new.arguments, old.id, old.name)
            )
    return ChatDelta(
        index=last.index,
        content="".join(delta.content for delta in deltas),
        reasoning_content="".join(delta.reasoning_content for delta in deltas),
        tool_calls=list(calls.values()),
        token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
        logprobs=None if last.logprobs is None else [entry for delta in deltas for entry in delta.logprobs or ()],
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        cumulative_logprob=last.cumulative_logprob,
    )
