"""From the gateway's own types to messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quire.gateway.chat.deltas import ChatDelta
from quire.outputs import CompletionDelta, TokenLogprobs, Usage, finish_reason_to_proto
from quire.v1 import generate_pb2


def completion_delta(delta: CompletionDelta | ChatDelta) -> generate_pb2.CompletionDelta:
    """What is new in one continuation, or in one choice's turn of a chat."""
    message = generate_pb2.CompletionDelta(index=delta.index, token_ids=delta.token_ids)
    if isinstance(delta, ChatDelta):
        message.text = delta.content
        message.reasoning_content = delta.reasoning_content
        for call in delta.tool_calls:
            message.tool_calls.add(index=call.index, id=call.id or "", name=call.name or "", arguments=call.arguments)
    else:
        message.text = delta.text
    if delta.cumulative_logprob is not None:
        message.cumulative_logprob = delta.cumulative_logprob
    if delta.logprobs:
        message.logprobs.extend(position.to_proto() for position in delta.logprobs)
    if delta.finish_reason is not None:
        message.finish_reason = finish_reason_to_proto(delta.finish_reason)
    if isinstance(delta.stop_reason, str):
        message.stop_string = delta.stop_reason
    elif delta.stop_reason is not None:
        message.stop_token_id = delta.stop_reason
    return message


def prompt_logprobs_messages(positions: Sequence[TokenLogprobs | None]) -> list[generate_pb2.TokenLogprobs]:
    """One per token of the prompt; nothing is known of the first."""
    return [generate_pb2.TokenLogprobs() if entry is None else entry.to_proto() for entry in positions]


def usage_message(usage: Usage) -> generate_pb2.Usage:
    """Tokens of a request."""
    return generate_pb2.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
    )


def merge_responses(responses: Iterable[generate_pb2.GenerateResponse]) -> generate_pb2.GenerateResponse:
    """Successive responses to one request as a single one."""
    merged = generate_pb2.GenerateResponse()
    for response in responses:
        merged.MergeFrom(response)  # appends what is repeated, the deltas among it
    by_index: dict[int, list[generate_pb2.CompletionDelta]] = {}
    for delta in merged.deltas:
        by_index.setdefault(delta.index, []).append(delta)
    joined = [_join(deltas) for deltas in by_index.values()]
    del merged.deltas[:]
    merged.deltas.extend(joined)
    return merged


def _join(deltas: Sequence[generate_pb2.CompletionDelta]) -> generate_pb2.CompletionDelta:
    """Successive deltas of one continuation; merging replaces texts, which are to be appended."""
    joined = generate_pb2.CompletionDelta()
    for delta in deltas:
        joined.MergeFrom(delta)
    joined.text = "".join(delta.text for delta in deltas)
    joined.reasoning_content = "".join(delta.reasoning_content for delta in deltas)
    calls: dict[int, list[generate_pb2.ToolCallDelta]] = {}
    for call in joined.tool_calls:
        calls.setdefault(call.index, []).append(call)
    whole = [_join_call(parts) for parts in calls.values()]
    del joined.tool_calls[:]
    joined.tool_calls.extend(whole)
    return joined


def _join_call(parts: Sequence[generate_pb2.ToolCallDelta]) -> generate_pb2.ToolCallDelta:
    joined = generate_pb2.ToolCallDelta()
    for part in parts:
        joined.MergeFrom(part)
    joined.arguments = "".join(part.arguments for part in parts)
    return joined
