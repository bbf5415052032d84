"""Embeddings: texts in, vectors of length 1 out. The model's states come from the scheduler; the rest is done here."""

from __future__ import annotations

import asyncio
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from quire.columns import pack_u32
from quire.errors import ContextLengthError, InvalidRequestError, QuireError
from quire.gateway.checkpoint_files import read_json
from quire.gateway.scheduler_client import SchedulerClient
from quire.gateway.validation import ModelLimits, RequestContext, Validator
from quire.internal.v1 import scheduler_pb2
from quire.outputs import Usage
from quire.v1 import generate_pb2

# last: the last token's state is the embedding. mean: the mean of all tokens' states.
Pooling = Literal["last", "mean"]

# Inputs of one request; OpenAI's bound.
MAX_INPUTS: Final = 2048

_TO_PROTO: Final = {"last": generate_pb2.POOLING_TYPE_LAST, "mean": generate_pb2.POOLING_TYPE_MEAN}
_FROM_PROTO: Final[dict[int, Pooling | None]] = {
    generate_pb2.POOLING_TYPE_UNSPECIFIED: None,
    generate_pb2.POOLING_TYPE_LAST: "last",
    generate_pb2.POOLING_TYPE_MEAN: "mean",
}
# What sentence-transformers calls them, in the file where it says how a model is pooled.
_POOLING_FILE: Final = "1_Pooling/config.json"
_MODES: Final[dict[str, Pooling]] = {"pooling_mode_lasttoken": "last", "pooling_mode_mean_tokens": "mean"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingParams:
    """How inputs become vectors. Raises InvalidRequestError, with `field`, for what is out of range.

    pooling: None for the model's own.
    dimensions: keep the first so many, and scale the vector to length 1 again; None for all.
    truncate_prompt_tokens: keep the last so many tokens of an input; -1 for as many as fit, None to refuse others.
    """

    pooling: Pooling | None = None
    dimensions: int | None = None
    truncate_prompt_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.dimensions is not None and self.dimensions < 1:
            raise InvalidRequestError(f"dimensions must be at least 1, not {self.dimensions}", field="dimensions")
        kept = self.truncate_prompt_tokens
        if kept is not None and kept != -1 and kept < 1:
            message = f"truncate_prompt_tokens must be -1 or at least 1, not {kept}"
            raise InvalidRequestError(message, field="truncate_prompt_tokens")


@dataclass(frozen=True, slots=True)
class Embedding:
    """What became of one input."""

    prompt_token_ids: list[int]
    # float32, of length 1.
    values: array[float]
    # Prompt tokens whose KV came from the prefix cache.
    cached_tokens: int


class Embedder:
    """Embeds with one served model."""

    def __init__(
        self, validator: Validator, client: SchedulerClient, limits: ModelLimits, own_pooling: Pooling | None
    ) -> None:
        """`own_pooling` is the model's, None where that is not supported."""
        self._validator = validator
        self._client = client
        self._limits = limits
        self._own_pooling = own_pooling

    async def embed(
        self, inputs: Sequence[str | Sequence[int]], params: PoolingParams, context: RequestContext, *, field: str
    ) -> list[Embedding]:
        """The embeddings of texts or token ids, in their order; all inputs run at once.

        `field` is what the client calls them. If any of them is refused, none runs: raises InvalidRequestError and
        ContextLengthError for inputs and parameters, and what the scheduler says.
        """
        pooling = self._check(params)
        valid = []
        for index, entry in enumerate(inputs):
            name = field if len(inputs) == 1 else f"{field}[{index}]"
            valid.append(await self._token_ids(entry, params.truncate_prompt_tokens, name))
            await asyncio.sleep(0)  # short texts are tokenised without a pause: others have their turn in between
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(
                        self._embed(
                            token_ids, pooling, params, replace(context, request_id=f"{context.request_id}-{index}")
                        )
                    )
                    for index, token_ids in enumerate(valid)
                ]
        except* QuireError as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    def _check(self, params: PoolingParams) -> Pooling:
        hidden_size = self._limits.hidden_size
        if params.dimensions is not None and params.dimensions > hidden_size:
            message = f"dimensions must be at most {hidden_size}, which the model has, not {params.dimensions}"
            raise InvalidRequestError(message, field="dimensions")
        pooling = params.pooling or self._own_pooling
        if pooling is None:
            message = f'the model\'s own pooling ({_POOLING_FILE}) is not supported; pooling must be "last" or "mean"'
            raise InvalidRequestError(message, field="pooling")
        return pooling

    async def _token_ids(self, entry: str | Sequence[int], truncate: int | None, field: str) -> list[int]:
        if isinstance(entry, str):
            token_ids = await self._validator.encode(entry, field=field)
        else:
            token_ids = list(entry)
            self._validator.check_token_ids(token_ids, field)
        longest = self._limits.max_model_len
        if truncate is not None:
            if truncate > longest:
                message = f"truncate_prompt_tokens must be at most {longest}, the model's context, not {truncate}"
                raise InvalidRequestError(message, field="truncate_prompt_tokens")
            token_ids = token_ids[-(longest if truncate == -1 else truncate) :]
        if not token_ids:
            raise InvalidRequestError(f"{field} is empty", field=field)
        if len(token_ids) > longest:
            message = f"This model's maximum context length is {longest} tokens. However, {field} has {len(token_ids)}."
            raise ContextLengthError(f"{message} Please reduce its length.", field=field)
        return token_ids

    async def _embed(
        self, token_ids: list[int], pooling: Pooling, params: PoolingParams, context: RequestContext
    ) -> Embedding:
        message = scheduler_pb2.SubmitRequest(
            request_id=context.request_id,
            prompt_token_ids=pack_u32(token_ids),
            sequences=[scheduler_pb2.SequenceState(index=0)],
            pooling=_TO_PROTO[pooling],
            priority=context.priority,
            cache_salt=context.cache_salt.encode(),
        )
        stream = await self._client.submit(message)
        try:
            chunk = await stream.next_chunk()
        except BaseException:
            self._client.abort(stream, scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED)
            raise
        # There is nothing to come but the embedding, which ends the request.
        self._client.release(stream)
        if chunk.embedding is None or len(chunk.embedding) != 4 * self._limits.hidden_size:
            raise QuireError("the scheduler did not send the embedding that was asked for")
        values = unit_vector(chunk.embedding, params.dimensions)
        return Embedding(token_ids, values, chunk.cached_tokens or 0)


def unit_vector(column: bytes, dimensions: int | None = None) -> array[float]:
    """The first dimensions of a float32 column, scaled to length 1. Raises QuireError if they are no numbers."""
    vector = array("f")
    vector.frombytes(column)
    vector = vector[:dimensions]
    # In double precision, and without overflow.
    length = math.hypot(*vector)
    if not math.isfinite(length):
        raise QuireError("the model's states are not numbers")
    return array("f", [value / length for value in vector]) if length else vector


def cosine_similarity(one: Embedding, other: Embedding) -> float:
    """Of two embeddings of the same size; in [-1, 1], whatever the rounding."""
    return max(-1.0, min(1.0, sum(a * b for a, b in zip(one.values, other.values, strict=True))))


def usage_of(embeddings: Sequence[Embedding]) -> Usage:
    """Tokens of all inputs together."""
    return Usage(
        prompt_tokens=sum(len(embedding.prompt_token_ids) for embedding in embeddings),
        completion_tokens=0,
        cached_tokens=sum(embedding.cached_tokens for embedding in embeddings),
    )


def pooling_from_proto(number: int) -> Pooling | None:
    """None for the model's own. Raises InvalidRequestError for a number that means nothing."""
    if number not in _FROM_PROTO:
        raise InvalidRequestError(f"pooling has no value {number}", field="pooling")
    return _FROM_PROTO[number]


def own_pooling(model: str, revision: str | None) -> Pooling | None:
    """How a checkpoint says it is pooled, as sentence-transformers writes it: last if it is silent.

    None for a way that is not supported, and for several at once. Raises CheckpointError for a damaged file.
    """
    config = read_json(model, _POOLING_FILE, revision)
    if not config:
        return "last"
    modes = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    return _MODES.get(modes[0]) if len(modes) == 1 else None
