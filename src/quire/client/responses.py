"""From messages to the types of `quire.outputs`."""

from __future__ import annotations

from quire.outputs import (
    CompletionDelta,
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
        reasoning_content=message.reasoning_content,
        tool_calls=[
            ToolCallDelta(call.index, call.arguments, call.id or None, call.name or None) for call in message.tool_calls
        ],
    )


def usage_of(response: generate_pb2.GenerateResponse) -> Usage | None:
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
