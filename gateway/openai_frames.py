"""OpenAI-shape answers, whole and streamed, encoded with msgspec (no model class per chunk)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import msgspec
from msgspec import UNSET, Struct, UnsetType

from quire.gateway.vocabulary import Vocabulary
from quire.outputs import CompletionDelta, FinishReason, TokenLogprobs, Usage

# JSON has no -inf; this is what OpenAI and vLLM send for "impossible".
_LOWEST_LOGPROB = -9999.0

_encoder = msgspec.json.Encoder()
encode = _encoder.encode


class PromptTokensDetails(Struct):
    """Where the prompt's KV came from."""

    cached_tokens: int


class UsageFrame(Struct):
    """`usage`."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, usages: Sequence[Usage]) -> UsageFrame:
        """The sum over the prompts of a request."""
        prompt = sum(usage.prompt_tokens for usage in usages)
        completion = sum(usage.completion_tokens for usage in usages)
        cached = sum(usage.cached_tokens for usage in usages)
        return cls(prompt, completion, prompt + completion, PromptTokensDetails(cached))


class CompletionLogprobs(Struct):
    """`logprobs` of /v1/completions: parallel lists, one entry per token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    # Where each token begins in the choice's text, in characters.
    text_offset: list[int]


class CompletionChoice(Struct):
    """A choice of /v1/completions; the same in a stream."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None


class TopLogprob(Struct):
    """One token of a position's distribution."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobFrame(Struct):
    """One position of a chat's `logprobs`."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    """`logprobs` of a chat."""

    content: list[TokenLogprobFrame]
    refusal: None = None


class ChatMessageFrame(Struct):
    """The assistant's message."""

    role: str
    content: str
    refusal: None = None


class ChatDelta(Struct):
    """What is new in the assistant's message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChoice(Struct, kw_only=True):
    """A choice of a chat; `delta` in a stream, `message` otherwise."""

    index: int
    delta: ChatDelta | UnsetType = UNSET
    message: ChatMessageFrame | UnsetType = UNSET
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None


class Answer(Struct):
    """A whole answer, or one chunk of a stream."""

    id: str
    object: str
    created: int
    model: str
    choices: Sequence[CompletionChoice | ChatChoice]
    usage: UsageFrame | UnsetType | None = UNSET


class Shape(Protocol):
    """How one of the endpoints writes choices."""

    id_prefix: str
    object: str
    chunk_object: str

    def chunk(self, delta: CompletionDelta, index: int) -> CompletionChoice | ChatChoice:
        """What is new in choice `index`, for a stream."""

    def whole(self, delta: CompletionDelta, index: int) -> CompletionChoice | ChatChoice:
        """All of choice `index`."""


class CompletionShape:
    """/v1/completions."""

    id_prefix = "cmpl-"
    object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        # By choice: characters of all tokens so far.
        self._offsets: dict[int, int] = {}

    def chunk(self, delta: CompletionDelta, index: int) -> CompletionChoice:
        """See Shape."""
        logprobs = None if delta.logprobs is None else self._logprobs(delta.logprobs, index)
        return CompletionChoice(index, delta.text, logprobs, delta.finish_reason, delta.stop_reason)

    whole = chunk

    def _logprobs(self, positions: Sequence[TokenLogprobs], index: int) -> CompletionLogprobs:
        text_of = self._vocabulary.text_of
        tokens = [text_of(position.token_id) for position in positions]
        offset = self._offsets.get(index, 0)
        offsets: list[int] = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        self._offsets[index] = offset
        top = [
            {text_of(token_id): _finite(logprob) for token_id, logprob in position.top}
            | {text_of(position.token_id): _finite(position.logprob)}
            for position in positions
        ]
        return CompletionLogprobs(tokens, [_finite(position.logprob) for position in positions], top, offsets)


class ChatShape:
    """/v1/chat/completions."""

    id_prefix = "chatcmpl-"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._opened: set[int] = set()

    def chunk(self, delta: CompletionDelta, index: int) -> ChatChoice:
        """See Shape; a choice's first chunk carries the role."""
        role = UNSET if index in self._opened else "assistant"
        self._opened.add(index)
        return self._choice(delta, index, delta=ChatDelta(role, delta.text))

    def whole(self, delta: CompletionDelta, index: int) -> ChatChoice:
        """See Shape."""
        return self._choice(delta, index, message=ChatMessageFrame("assistant", delta.text))

    def _choice(
        self,
        source: CompletionDelta,
        index: int,
        *,
        delta: ChatDelta | UnsetType = UNSET,
        message: ChatMessageFrame | UnsetType = UNSET,
    ) -> ChatChoice:
        return ChatChoice(
            index=index,
            delta=delta,
            message=message,
            logprobs=self._logprobs(source.logprobs),
            finish_reason=source.finish_reason,
            stop_reason=source.stop_reason,
        )

    def _logprobs(self, positions: Sequence[TokenLogprobs] | None) -> ChatLogprobs | None:
        if positions is None:
            return None
        return ChatLogprobs(
            [
                TokenLogprobFrame(
                    *self._entry(position.token_id, position.logprob),
                    [TopLogprob(*self._entry(token_id, logprob)) for token_id, logprob in position.top],
                )
                for position in positions
            ]
        )

    def _entry(self, token_id: int, logprob: float) -> tuple[str, float, list[int]]:
        return self._vocabulary.text_of(token_id), _finite(logprob), list(self._vocabulary.bytes_of(token_id))


class AnswerWriter:
    """Writes one answer: as chunks of a stream, or whole."""

    def __init__(self, shape: Shape, request_id: str, model: str, *, include_usage: bool) -> None:
        """`include_usage` is the stream's option; a whole answer always has its usage."""
        self._shape = shape
        self._id = shape.id_prefix + request_id
        self._model = model
        self._created = int(time.time())
        # All events of a stream but the last are the same around their only choice. With the option on, they
        # carry `usage: null`.
        before, _, after = self._event([], None if include_usage else UNSET).rpartition(b"[]")
        self._before_choice, self._after_choice = before + b"[", b"]" + after

    def event(self, delta: CompletionDelta, index: int) -> bytes:
        """The SSE event of what is new in choice `index`; empty if there is nothing to tell."""
        if not (delta.text or delta.finish_reason or delta.logprobs):
            return b""
        return b"%b%b%b" % (self._before_choice, encode(self._shape.chunk(delta, index)), self._after_choice)

    def usage_event(self, usages: Sequence[Usage]) -> bytes:
        """The SSE event that ends a stream with `include_usage`."""
        return self._event([], UsageFrame.of(usages))

    def whole(self, choices: Sequence[CompletionDelta], usages: Sequence[Usage]) -> bytes:
        """The JSON of a whole answer; each choice is all of its deltas merged."""
        written = [self._shape.whole(choice, index) for index, choice in enumerate(choices)]
        usage = UsageFrame.of(usages)
        return encode(Answer(self._id, self._shape.object, self._created, self._model, written, usage))

    def _event(self, choices: Sequence[CompletionChoice | ChatChoice], usage: UsageFrame | UnsetType | None) -> bytes:
        chunk = Answer(self._id, self._shape.chunk_object, self._created, self._model, choices, usage)
        return b"data: " + encode(chunk) + b"\n\n"


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST_LOGPROB)
