"""/v1/completions: what a request may hold, and how choices are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from msgspec import UNSET, Struct, UnsetType
from pydantic import PlainValidator, WithJsonSchema

from quire.errors import InvalidRequestError
from quire.gateway.generation_group import GenerationGroup
from quire.gateway.openai.frames import finite
from quire.gateway.openai.protocol import Integer, OpenAIRequest
from quire.gateway.openai.tokens import TokenView
from quire.outputs import (
    CompletionDelta,
    FinishReason,
    Logprob,
    TokenLogprobs,
    merge_deltas,
    prompt_logprobs_by_token_id,
)
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


_TEXT_SCHEMA: dict[str, Any] = {"type": "string", "minLength": 1}
_TOKEN_IDS_SCHEMA: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PROMPT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        _TEXT_SCHEMA,
        {"type": "array", "items": _TEXT_SCHEMA, "minItems": 1, "maxItems": _MAX_CHOICES},
        _TOKEN_IDS_SCHEMA,
        {"type": "array", "items": _TOKEN_IDS_SCHEMA, "minItems": 1, "maxItems": _MAX_CHOICES},
    ]
}

Prompts = Annotated[list[str | list[int]], PlainValidator(_parse_prompts), WithJsonSchema(_PROMPT_SCHEMA)]


class CompletionRequest(OpenAIRequest):
    """The body of POST /v1/completions."""

    # A text or the ids of tokens, or several of either.
    prompt: Prompts
    # Number of most likely tokens reported beside each token; absent means no logprobs.
    logprobs: Integer | None = None
    # Whether the prompt comes before the output; max_tokens may then be 0. Default false.
    echo: bool | None = None

    @property
    def prompts_only(self) -> bool:
        """Whether nothing is generated: only with `echo` may max_tokens be 0, as OpenAI allows it."""
        return self.echo is True and super()._max_tokens() == 0

    def sampling_params(self) -> SamplingParams:
        """Raises InvalidRequestError."""
        name, count = ("n", self.n or 1) if self.best_of is None else ("best_of", self.best_of)
        num_choices = count * len(self.prompt)
        if num_choices > _MAX_CHOICES:
            message = f"{len(self.prompt)} prompts with {name} = {count} make {num_choices} choices"
            raise InvalidRequestError(f"{message}; at most {_MAX_CHOICES} fit one request", field=name)
        params = self._sampling_params(self.logprobs)
        if self.echo and params.prompt_logprobs is None:
            return replace(params, prompt_logprobs=self.logprobs)
        return params

    def _max_tokens(self) -> int | None:
        # A step samples one token at least.
        return 1 if self.prompts_only else super()._max_tokens()


class CompletionLogprobs(Struct):
    """`logprobs` of /v1/completions: parallel lists, one entry per token."""

    tokens: list[str]
    # None for the first token of a prompt, before which there is nothing.
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    # Where each token begins in the choice's text, in characters.
    text_offset: list[int]


class CompletionChoice(Struct):
    """A choice of /v1/completions; the same in a stream."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    # With return_token_ids; those of the prompt on a choice's first chunk.
    token_ids: Sequence[int] | UnsetType = UNSET
    prompt_token_ids: Sequence[int] | UnsetType = UNSET
    # With prompt_logprobs, on a choice's first chunk.
    prompt_logprobs: list[dict[int, Logprob] | None] | UnsetType = UNSET


class CompletionShape:
    """/v1/completions."""

    id_prefix = "cmpl-"
    object = "text_completion"
    chunk_object = "text_completion"
    service_tier: str | UnsetType = UNSET

    def __init__(
        self,
        tokens: TokenView,
        group: GenerationGroup,
        *,
        echoes: Sequence[str] | None = None,
        prompt_logprobs: bool = False,
    ) -> None:
        """`echoes`: the prompts, if choices begin with them."""
        self._tokens = tokens
        self._group = group
        self._requests = group.requests
        self._with_logprobs = self._requests[0].params.logprobs is not None
        self._num_per_prompt = group.num_choices // len(self._requests)
        self._echoes = echoes
        self._prompt_logprobs = prompt_logprobs
        self._opens = echoes is not None or prompt_logprobs or tokens.with_ids
        self._opened: set[int] = set()
        # By choice: characters of all tokens so far.
        self._offsets: dict[int, int] = {}

    def chunk(self, delta: CompletionDelta, index: int) -> CompletionChoice | None:
        """See Shape."""
        if delta.text or delta.finish_reason or delta.logprobs or (self._opens and self._tells(delta, index)):
            return self._choice(delta, index)
        return None

    def whole(self, deltas: Sequence[CompletionDelta], index: int) -> CompletionChoice:
        """See Shape."""
        return self._choice(merge_deltas(deltas), index)

    def _tells(self, delta: CompletionDelta, index: int) -> bool:
        """Whether a delta without text has something to tell."""
        return index not in self._opened or (self._tokens.with_ids and bool(delta.token_ids))

    def _choice(self, delta: CompletionDelta, index: int) -> CompletionChoice:
        if self._opens and index not in self._opened:
            self._opened.add(index)
            return self._first(delta, index)
        logprobs = None if delta.logprobs is None else self._logprobs(delta.logprobs, index)
        token_ids = self._tokens.ids(delta.token_ids)
        return CompletionChoice(index, delta.text, logprobs, delta.finish_reason, delta.stop_reason, token_ids)

    def _first(self, delta: CompletionDelta, index: int) -> CompletionChoice:
        """A choice's first chunk, with what it tells of its prompt."""
        prompt = index // self._num_per_prompt
        text = delta.text
        positions: Sequence[TokenLogprobs | None] | None = delta.logprobs
        known = self._group.prompt_logprobs.get(prompt, ())
        if self._echoes is not None:
            text = self._echoes[prompt] + text
            if self._with_logprobs:
                positions = [*known, *(positions or ())]
        return CompletionChoice(
            index,
            text,
            None if positions is None else self._logprobs(positions, index),
            delta.finish_reason,
            delta.stop_reason,
            self._tokens.ids(delta.token_ids),
            self._tokens.ids(self._requests[prompt].prompt_token_ids),
            prompt_logprobs_by_token_id(known, self._tokens.text_of) if self._prompt_logprobs else UNSET,
        )

    def _logprobs(self, positions: Sequence[TokenLogprobs | None], index: int) -> CompletionLogprobs:
        text_of = self._tokens.text_of
        token_ids = self._requests[index // self._num_per_prompt].prompt_token_ids
        # Only the first token of a prompt has no position.
        tokens = [text_of(token_ids[0] if position is None else position.token_id) for position in positions]
        offset = self._offsets.get(index, 0)
        offsets: list[int] = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        self._offsets[index] = offset
        values = [None if position is None else finite(position.logprob) for position in positions]
        return CompletionLogprobs(tokens, values, [self._top(position) for position in positions], offsets)

    def _top(self, position: TokenLogprobs | None) -> dict[str, float] | None:
        if position is None:
            return None
        text_of = self._tokens.text_of
        top = {text_of(token_id): finite(logprob) for token_id, logprob in position.top}
        return top | {text_of(position.token_id): finite(position.logprob)}
