"""From messages to the types of `quire.outputs`."""

from __future__ import annotations

from collections.abc import Sequence

from quire.outputs import (
    CompletionDelta,
    GenerationDelta,
    RequestOutput,
    TokenLogprobs,
    ToolCallDelta,
    Usage,
    finish_reason_from_proto,
)
from quire.v1 import generate_pb2


def completion_delta(message: generate_pb2.CompletionDelta) -> CompletionDelta:
    """What is new in one continuation."""
    logprobs = None
    if message.logprobs:
        pairs = zip(message.token_ids, message.logprobs, strict=True)
        logprobs = [TokenLogprobs.from_proto(token_id, position) for token_id, position in pairs]
    reason = message.WhichOneof("stop_reason")
    return CompletionDelta(
        index=message.index,
        text=message.text,
        token_ids=list(message.token_ids),
        logprobs=logprobs,
        finish_reason=finish_reason_from_proto(message.finish_reason),
        stop_reason=None if reason is None else getattr(message, reason),
        cumulative_logprob=message.cumulative_logprob if message.HasField("cumulative_logprob") else None,
        reasoning_content=message.reasoning_content,
        tool_calls=[
            ToolCallDelta(call.index, call.arguments, call.id or None, call.name or None) for call in message.tool_calls
        ],
    )


def generation_delta(
    deltas: Sequence[CompletionDelta], response: generate_pb2.GenerateResponse, *, with_prompt: bool
) -> GenerationDelta:
    """What is new in a request: `deltas`, and what else the response says."""
    prompt_token_ids = list(response.prompt_token_ids) if with_prompt else []
    return GenerationDelta(
        deltas,
        usage=_usage_of(response),
        prompt_logprobs=_prompt_logprobs(prompt_token_ids, response.prompt_logprobs),
        prompt_token_ids=prompt_token_ids or None,
    )


def _prompt_logprobs(
    token_ids: Sequence[int], positions: Sequence[generate_pb2.TokenLogprobs]
) -> list[TokenLogprobs | None] | None:
    """One per token of the prompt; nothing is known of the first."""
    if not token_ids or not positions:
        return None
    entries = zip(token_ids, positions, strict=True)
    _, *known = [TokenLogprobs.from_proto(token_id, position) for token_id, position in entries]
    return [None, *known]


def _usage_of(response: generate_pb2.GenerateResponse) -> Usage | None:
    """The usage, which only a stream's last message has."""
    if not response.HasField("usage"):
        return None
    usage = response.usage
    return Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)


def empty_output(request: generate_pb2.GenerateRequest) -> RequestOutput:
    """The output of a request that has just been sent."""
    kind = request.WhichOneof("prompt")
    return RequestOutput.empty(
        request.request_id,
        prompt=request.text if kind == "text" else None,
        prompt_token_ids=list(request.token_ids.ids) if kind == "token_ids" else None,
        n=request.sampling_params.n if request.sampling_params.HasField("n") else 1,
    )
