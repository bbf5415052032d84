"""What generation gives: step by step (`GenerationDelta`) and as a whole (`RequestOutput`, as in vLLM).

The gateway's engine, the offline LLM class and the client share these types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from msgspec import Struct

from quire.v1 import generate_pb2

# stop: a stop string, a stop token or an end-of-sequence token. length: max_tokens or the end of the context.
# abort: cancelled by the client or by the server. tool_calls: only of a chat, whose turn is complete and calls tools.
FinishReason = Literal["stop", "length", "abort", "tool_calls"]

_FROM_PROTO: dict[int, FinishReason] = {
    generate_pb2.FINISH_REASON_STOP: "stop",
    generate_pb2.FINISH_REASON_LENGTH: "length",
    generate_pb2.FINISH_REASON_ABORT: "abort",
    generate_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
}
_TO_PROTO = {reason: number for number, reason in _FROM_PROTO.items()}


def finish_reason_from_proto(number: int) -> FinishReason | None:
    """None for FINISH_REASON_UNSPECIFIED, and for what a newer peer may know."""
    return _FROM_PROTO.get(number)


def finish_reason_to_proto(reason: FinishReason) -> generate_pb2.FinishReason.ValueType:
    """The enum's number."""
    return generate_pb2.FinishReason.ValueType(_TO_PROTO[reason])


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of the model's own distribution at one position (before temperature and filters)."""

    token_id: int
    logprob: float
    # Most likely first; as many as were asked for.
    top: tuple[tuple[int, float], ...] = ()

    @classmethod
    def from_proto(cls, token_id: int, message: generate_pb2.TokenLogprobs) -> TokenLogprobs:
        """Of one token of an output or a prompt."""
        top = zip(message.top_token_ids, message.top_logprobs, strict=True)
        return cls(token_id, message.logprob, tuple(top))

    def to_proto(self) -> generate_pb2.TokenLogprobs:
        """The message; the token's id travels beside it."""
        return generate_pb2.TokenLogprobs(
            logprob=self.logprob,
            top_token_ids=[token_id for token_id, _ in self.top],
            top_logprobs=[logprob for _, logprob in self.top],
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request, over all its continuations."""

    prompt_tokens: int
    completion_tokens: int
    # Prompt tokens whose KV came from the prefix cache.
    cached_tokens: int
    # Output tokens of a chat that are thought.
    reasoning_tokens: int = 0


class ToolCallDelta(Struct, frozen=True):
    """What is new in one call of a tool."""

    # Which of the turn's calls.
    index: int
    # What is new in the JSON text.
    arguments: str = ""
    # Only on a call's first delta.
    id: str | None = None
    name: str | None = None


class CompletionDelta(Struct, frozen=True):
    """What is new in one continuation. (A Struct, because one is made per token: a frozen dataclass takes 4 us.)"""

    index: int
    text: str = ""
    # Tokens may run ahead of the text: half a character or the possible start of a stop string is held back.
    token_ids: Sequence[int] = ()
    # One per token id, if asked for.
    logprobs: Sequence[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    # The stop string or stop token of the request that ended it; None after an end-of-sequence token.
    stop_reason: str | int | None = None
    # Of beam search and best_of, at the end: the sum of all its tokens' logprobs.
    cumulative_logprob: float | None = None
    # Of a chat, where a client receives it: the turn's text is `text`.
    reasoning_content: str = ""
    tool_calls: Sequence[ToolCallDelta] = ()


def merge_deltas(deltas: Sequence[CompletionDelta]) -> CompletionDelta:
    """Successive deltas of one continuation (at least one) as a single one."""
    last = deltas[-1]
    return CompletionDelta(
        index=last.index,
        text="".join(delta.text for delta in deltas),
        token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
        logprobs=None if last.logprobs is None else [position for delta in deltas for position in delta.logprobs or ()],
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        cumulative_logprob=last.cumulative_logprob,
    )


class GenerationDelta(Struct, frozen=True):
    """What is new in a request."""

    deltas: Sequence[CompletionDelta]
    # Only on the last one.
    usage: Usage | None = None
    # Only on the first one, if asked for: an entry per token of the prompt, None for the first.
    prompt_logprobs: Sequence[TokenLogprobs | None] | None = None
    # Where a client receives it: only on the first one, if asked for.
    prompt_token_ids: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """A vector of length 1."""

    embedding: list[float]


@dataclass(frozen=True, slots=True)
class EmbeddingRequestOutput:
    """A prompt and its embedding."""

    request_id: str
    prompt_token_ids: list[int]
    outputs: EmbeddingOutput
    # Prompt tokens whose KV came from the prefix cache.
    num_cached_tokens: int
    finished: bool = True


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token of a position's distribution."""

    logprob: float
    # 1 is the most likely; None for a sampled token, or one of the prompt, that is not among the likeliest.
    rank: int | None = None
    # None where no tokenizer is at hand.
    decoded_token: str | None = None


@dataclass(slots=True)
class ToolCall:
    """A call of a tool."""

    id: str = ""
    name: str = ""
    # JSON text.
    arguments: str = ""


@dataclass(slots=True)
class CompletionOutput:
    """One continuation."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    # Per token: the sampled token and the most likely ones, by token id.
    logprobs: list[dict[int, Logprob]] | None = None
    cumulative_logprob: float | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    # Of a chat.
    reasoning_content: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)


@dataclass(slots=True)
class RequestOutput:
    """A request's prompt and its continuations."""

    request_id: str
    prompt: str | None
    # None where only the server knows them.
    prompt_token_ids: list[int] | None
    outputs: list[CompletionOutput]
    finished: bool = False
    # Prompt tokens whose KV came from the prefix cache.
    num_cached_tokens: int | None = None
    # Per token of the prompt, if asked for: the token and the most likely ones, by token id; None for the first.
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None

    @classmethod
    def empty(
        cls, request_id: str, prompt: str | None, prompt_token_ids: list[int] | None, n: int = 1
    ) -> RequestOutput:
        """An output to which nothing has been added."""
        return cls(request_id, prompt, prompt_token_ids, [CompletionOutput(index) for index in range(n)])

    def add(self, delta: GenerationDelta, decode: Callable[[int], str] | None = None) -> None:
        """Adds what is new; `decode` gives the texts of tokens in logprobs."""
        for part in delta.deltas:
            self._add_completion(self.outputs[part.index], part, decode)
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = prompt_logprobs_by_token_id(delta.prompt_logprobs, decode)
        if delta.prompt_token_ids is not None:
            self.prompt_token_ids = list(delta.prompt_token_ids)
        if delta.usage is not None:
            self.finished = True
            self.num_cached_tokens = delta.usage.cached_tokens

    @staticmethod
    def _add_completion(output: CompletionOutput, part: CompletionDelta, decode: Callable[[int], str] | None) -> None:
        output.text += part.text
        output.reasoning_content += part.reasoning_content
        for new in part.tool_calls:
            output.tool_calls += [ToolCall() for _ in range(len(output.tool_calls), new.index + 1)]
            call = output.tool_calls[new.index]
            call.id, call.name = call.id or new.id or "", call.name or new.name or ""
            call.arguments += new.arguments
        output.token_ids.extend(part.token_ids)
        if part.logprobs is not None:
            output.logprobs = output.logprobs or []
            output.logprobs.extend(_by_token_id(position, decode) for position in part.logprobs)
            total = sum(position.logprob for position in part.logprobs)
            output.cumulative_logprob = (output.cumulative_logprob or 0.0) + total
        if part.cumulative_logprob is not None:
            output.cumulative_logprob = part.cumulative_logprob
        if part.finish_reason is not None:
            output.finish_reason = part.finish_reason
            output.stop_reason = part.stop_reason


def prompt_logprobs_by_token_id(
    positions: Sequence[TokenLogprobs | None], decode: Callable[[int], str] | None = None
) -> list[dict[int, Logprob] | None]:
    """Logprobs of a prompt as vLLM gives them; `decode` gives the tokens' texts."""
    return [None if position is None else _by_token_id(position, decode) for position in positions]


def _by_token_id(position: TokenLogprobs, decode: Callable[[int], str] | None) -> dict[int, Logprob]:
    """A position as vLLM gives it: the sampled token, or the prompt's, first."""

    def entry(token_id: int, logprob: float, rank: int | None) -> Logprob:
        return Logprob(logprob, rank, decode(token_id) if decode else None)

    tokens = {position.token_id: entry(position.token_id, position.logprob, None)}
    tokens.update(
        (token_id, entry(token_id, logprob, rank)) for rank, (token_id, logprob) in enumerate(position.top, 1)
    )
    return tokens
