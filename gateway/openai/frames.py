"""OpenAI-shape answers, whole and streamed, encoded with msgspec (no model class per chunk)."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from quire.gateway.engine import Engine
from quire.gateway.openai.tokens import TokenView
from quire.gateway.validation import ValidRequest
from quire.outputs import Logprob, TokenLogprobs, Usage, prompt_logprobs_by_token_id

# JSON has no -inf; this is what OpenAI and vLLM send for "impossible".
_LOWEST_LOGPROB = -9999.0

_encoder = msgspec.json.Encoder()
encode = _encoder.encode


class PromptTokensDetails(Struct):
    """Where the prompt's KV came from."""

    cached_tokens: int
    audio_tokens: int = 0


class CompletionTokensDetails(Struct):
    """What the output's tokens were spent on."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class UsageFrame(Struct):
    """`usage`."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    # Known at the end.
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None

    @classmethod
    def of(cls, usages: Sequence[Usage]) -> UsageFrame:
        """The sum over the prompts of a request."""
        prompt = sum(usage.prompt_tokens for usage in usages)
        completion = sum(usage.completion_tokens for usage in usages)
        cached = sum(usage.cached_tokens for usage in usages)
        reasoning = sum(usage.reasoning_tokens for usage in usages)
        details = PromptTokensDetails(cached), CompletionTokensDetails(reasoning)
        return cls(prompt, completion, prompt + completion, *details)


C = TypeVar("C", bound=Struct)


class Answer(Struct, Generic[C]):
    """A whole answer, or one chunk of a stream."""

    id: str
    object: str
    created: int
    model: str
    choices: Sequence[C]
    usage: UsageFrame | UnsetType | None = UNSET
    service_tier: str | UnsetType = UNSET
    system_fingerprint: str | None = None
    # Of a chat that asked for them; in a stream, on its first chunk.
    prompt_token_ids: Sequence[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[int, Logprob] | None] | UnsetType = UNSET


class Delta(Protocol):
    """What is new in one choice."""

    @property
    def token_ids(self) -> Sequence[int]:
        """Its new tokens."""


D = TypeVar("D", bound=Delta)
_Given = TypeVar("_Given", covariant=True)
_Taken = TypeVar("_Taken", contravariant=True)


class Source(Protocol[_Given]):
    """A running request. Whoever leaves it early must close it."""

    @property
    def num_choices(self) -> int:
        """How many there are."""

    @property
    def requests(self) -> Sequence[ValidRequest]:
        """One per prompt."""

    @property
    def usages(self) -> Sequence[Usage]:
        """One per prompt that has ended."""

    @property
    def prompt_logprobs(self) -> Mapping[int, Sequence[TokenLogprobs | None]]:
        """By prompt, where asked for, from its first batch on."""

    def batches(self) -> AsyncGenerator[Sequence[tuple[int, _Given]], None]:
        """(choice, what is new in it), for all choices that a step touched. Raises QuireError."""

    def close(self) -> None:
        """Aborts what still runs."""


class Shape(Protocol[_Taken]):
    """How one of the endpoints writes choices."""

    id_prefix: str
    object: str
    chunk_object: str
    # Where OpenAI's schema has one.
    service_tier: str | UnsetType

    def chunk(self, delta: _Taken, index: int) -> Struct | None:
        """What is new in choice `index`, for a stream; None if there is nothing to tell."""

    def whole(self, deltas: Sequence[_Taken], index: int) -> Struct:
        """All of choice `index`."""


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """What a client wants to see of an answer."""

    tokens: TokenView
    # Of a stream; a whole answer always has its usage.
    include_usage: bool = False
    continuous_usage: bool = False
    # Of a chat, which has one prompt; with several, each choice tells of its own.
    prompt_token_ids: bool = False
    prompt_logprobs: bool = False


class AnswerWriter(Generic[D]):
    """Writes one answer: as chunks of a stream, or whole."""

    def __init__(
        self, shape: Shape[D], request_id: str, engine: Engine, source: Source[D], options: AnswerOptions
    ) -> None:
        self._shape = shape
        self._source = source
        self._options = options
        self._answer = Answer[Struct](
            shape.id_prefix + request_id,
            shape.chunk_object,
            int(time.time()),
            engine.limits.model,
            [],
            None if options.include_usage else UNSET,
            shape.service_tier,
            engine.fingerprint,
        )
        # Nearly all events of a stream are the same around their only choice. With include_usage, they carry
        # `usage: null`.
        before, _, after = _event(self._answer).rpartition(b"[]")
        self._before_choice, self._after_choice = before + b"[", b"]" + after
        self._is_first = options.prompt_token_ids or options.prompt_logprobs
        self._num_tokens = 0

    def event(self, delta: D, index: int) -> bytes:
        """The SSE event of what is new in choice `index`; empty if there is nothing to tell."""
        if self._options.continuous_usage:
            self._num_tokens += len(delta.token_ids)
        chunk = self._shape.chunk(delta, index)
        if chunk is None:
            return b""
        if self._is_first or self._options.continuous_usage:
            return _event(self._with_options([chunk]))
        return b"%b%b%b" % (self._before_choice, encode(chunk), self._after_choice)

    def usage_event(self) -> bytes:
        """The SSE event that ends a stream with `include_usage`."""
        return _event(replace(self._answer, usage=UsageFrame.of(self._source.usages)))

    def whole(self, choices: Sequence[Sequence[D]]) -> bytes:
        """The JSON of a whole answer, from each choice's deltas (at least one)."""
        written = [self._shape.whole(deltas, index) for index, deltas in enumerate(choices)]
        answer = self._with_options(written)
        answer.object, answer.usage = self._shape.object, UsageFrame.of(self._source.usages)
        return encode(answer)

    def _with_options(self, choices: Sequence[Struct]) -> Answer[Struct]:
        """A chunk with usage so far and, if it is the first, what it tells of the prompt."""
        answer, options = replace(self._answer, choices=choices), self._options
        if options.continuous_usage:
            num_prompt_tokens = sum(len(request.prompt_token_ids) for request in self._source.requests)
            answer.usage = UsageFrame(num_prompt_tokens, self._num_tokens, num_prompt_tokens + self._num_tokens)
        if self._is_first:
            self._is_first = False
            if options.prompt_token_ids:
                answer.prompt_token_ids = self._source.requests[0].prompt_token_ids
            if options.prompt_logprobs:
                known = self._source.prompt_logprobs[0]
                answer.prompt_logprobs = prompt_logprobs_by_token_id(known, options.tokens.text_of)
        return answer


def _event(answer: Answer[Struct]) -> bytes:
    return b"data: " + encode(answer) + b"\n\n"


def finite(logprob: float) -> float:
    """A logprob that JSON can hold."""
    return max(logprob, _LOWEST_LOGPROB)
