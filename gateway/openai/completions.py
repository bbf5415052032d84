"""/v1/completions: what a request may hold, and how choices are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Struct
from pydantic import PlainValidator, WithJsonSchema

from quire.errors import InvalidRequestError
from quire.gateway.openai.frames import finite
from quire.gateway.openai.protocol import TEXTS_SCHEMA, OpenAIRequest
from quire.gateway.vocabulary import Vocabulary
from quire.outputs import CompletionDelta, FinishReason, TokenLogprobs, merge_deltas
from quire.sampling_params import SamplingParams

# OpenAI's default; a chat may fill the context.
COMPLETION_MAX_TOKENS = 16
# Prompts times continuations of one request.
_MAX_CHOICES = 2048


def _parse_prompts(value: object) -> list[str | list[int]]:
    """The four forms of `prompt`, as a list of prompts."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError("must be a string, a list of strings, a list of token ids or a list of such lists")
    if len(value) > _MAX_CHOICES and not _is_token_ids(value):
        raise ValueError(f"holds more than {_MAX_CHOICES} prompts")
    if all(isinstance(entry, str) for entry in value):
        return value
    if _is_token_ids(value):
        return [value]
    for index, entry in enumerate(value):
        if not isinstance(entry, list) or not _is_token_ids(entry):
            raise ValueError(f"mixes kinds of prompts, or is neither text nor integers, at index {index}")
    return value


def _is_token_ids(value: list[object]) -> bool:
    return all(type(entry) is int for entry in value)  # a bool is no token id


_TOKEN_IDS_SCHEMA: dict[str, Any] = {"type": "array", "items": {"type": "integer"}}
_PROMPT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        TEXTS_SCHEMA,
        _TOKEN_IDS_SCHEMA,
        {"type": "array", "items": _TOKEN_IDS_SCHEMA},
    ]
}

Prompts = Annotated[list[str | list[int]], PlainValidator(_parse_prompts), WithJsonSchema(_PROMPT_SCHEMA)]


class CompletionRequest(OpenAIRequest):
    """The body of POST /v1/completions."""

    prompt: Prompts
    logprobs: int | None = None

    def sampling_params(self) -> SamplingParams:
        """Raises InvalidRequestError."""
        name, count = ("n", self.n or 1) if self.best_of is None else ("best_of", self.best_of)
        num_choices = count * len(self.prompt)
        if num_choices > _MAX_CHOICES:
            message = f"{len(self.prompt)} prompts with {name} = {count} make {num_choices} choices"
            raise InvalidRequestError(f"{message}; at most {_MAX_CHOICES} fit one request", field=name)
        return self._sampling_params(self.logprobs)


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


class CompletionShape:
    """/v1/completions."""

    id_prefix = "cmpl-"
    object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        # By choice: characters of all tokens so far.
        self._offsets: dict[int, int] = {}

    def chunk(self, delta: CompletionDelta, index: int) -> CompletionChoice | None:
        """See Shape."""
        return self._choice(delta, index) if delta.text or delta.finish_reason or delta.logprobs else None

    def whole(self, deltas: Sequence[CompletionDelta], index: int) -> CompletionChoice:
        """See Shape."""
        return self._choice(merge_deltas(deltas), index)

    def _choice(self, delta: CompletionDelta, index: int) -> CompletionChoice:
        logprobs = None if delta.logprobs is None else self._logprobs(delta.logprobs, index)
        return CompletionChoice(index, delta.text, logprobs, delta.finish_reason, delta.stop_reason)

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
            {text_of(token_id): finite(logprob) for token_id, logprob in position.top}
            | {text_of(position.token_id): finite(position.logprob)}
            for position in positions
        ]
        return CompletionLogprobs(tokens, [finite(position.logprob) for position in positions], top, offsets)
