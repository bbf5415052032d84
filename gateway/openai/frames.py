"""OpenAI-shape answers, whole and streamed, encoded with msgspec (no model class per chunk)."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from typing import Generic, Protocol, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from quire.outputs import Usage

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


class Answer(Struct):
    """A whole answer, or one chunk of a stream."""

    id: str
    object: str
    created: int
    model: str
    choices: Sequence[Struct]
    usage: UsageFrame | UnsetType | None = UNSET


# What is new in one choice.
D = TypeVar("D")
_Given = TypeVar("_Given", covariant=True)
_Taken = TypeVar("_Taken", contravariant=True)


class Source(Protocol[_Given]):
    """A running request. Whoever leaves it early must close it."""

    @property
    def num_choices(self) -> int:
        """How many there are."""

    @property
    def usages(self) -> Sequence[Usage]:
        """One per prompt that has ended."""

    def batches(self) -> AsyncGenerator[Sequence[tuple[int, _Given]], None]:
        """(choice, what is new in it), for all choices that a step touched. Raises QuireError."""

    def close(self) -> None:
        """Aborts what still runs."""


class Shape(Protocol[_Taken]):
    """How one of the endpoints writes choices."""

    id_prefix: str
    object: str
    chunk_object: str

    def chunk(self, delta: _Taken, index: int) -> Struct | None:
        """What is new in choice `index`, for a stream; None if there is nothing to tell."""

    def whole(self, deltas: Sequence[_Taken], index: int) -> Struct:
        """All of choice `index`."""


class AnswerWriter(Generic[D]):
    """Writes one answer: as chunks of a stream, or whole."""

    def __init__(self, shape: Shape[D], request_id: str, model: str, *, include_usage: bool) -> None:
        """`include_usage` is the stream's option; a whole answer always has its usage."""
        self._shape = shape
        self._id = shape.id_prefix + request_id
        self._model = model
        self._created = int(time.time())
        # All events of a stream but the last are the same around their only choice. With the option on, they
        # carry `usage: null`.
        before, _, after = self._event([], None if include_usage else UNSET).rpartition(b"[]")
        self._before_choice, self._after_choice = before + b"[", b"]" + after

    def event(self, delta: D, index: int) -> bytes:
        """The SSE event of what is new in choice `index`; empty if there is nothing to tell."""
        chunk = self._shape.chunk(delta, index)
        return b"" if chunk is None else b"%b%b%b" % (self._before_choice, encode(chunk), self._after_choice)

    def usage_event(self, usages: Sequence[Usage]) -> bytes:
        """The SSE event that ends a stream with `include_usage`."""
        return self._event([], UsageFrame.of(usages))

    def whole(self, choices: Sequence[Sequence[D]], usages: Sequence[Usage]) -> bytes:
        """The JSON of a whole answer, from each choice's deltas (at least one)."""
        written = [self._shape.whole(deltas, index) for index, deltas in enumerate(choices)]
        usage = UsageFrame.of(usages)
        return encode(Answer(self._id, self._shape.object, self._created, self._model, written, usage))

    def _event(self, choices: Sequence[Struct], usage: UsageFrame | UnsetType | None) -> bytes:
        chunk = Answer(self._id, self._shape.chunk_object, self._created, self._model, choices, usage)
        return b"data: " + encode(chunk) + b"\n\n"


def finite(logprob: float) -> float:
    """A logprob that JSON can hold."""
    return max(logprob, _LOWEST_LOGPROB)
