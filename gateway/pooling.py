"""Embeddings: texts in, vectors of length 1 out. The model's states come from the scheduler; the rest is done here."""

from __future__ import annotations

import asyncio
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from quire.columns import pack_u32
from quire.errors import ContextLengthError, InvalidRequestError, QuireError
from quire.gateway.checkpoint_files import read_json
from quire.gateway.request_record import Recorder
from quire.gateway.scheduler_client import SchedulerClient
from quire.gateway.validation import ModelLimits, RequestContext, Validator
from quire.internal.v1 import scheduler_pb2
from quire.outputs import Usage
from quire.pooling_params import Pooling, PoolingParams, pooling_to_proto

# Inputs of one request; OpenAI's bound.
MAX_INPUTS: Final = 2048

# Inputs on their way to the scheduler at a time. gRPC cancels some of two thousand calls that begin at once.
_MAX_SUBMITTING: Final = 32
# What sentence-transformers calls them, in the file where it says how a model is pooled.
_POOLING_FILE: Final = "1_Pooling/config.json"
_MODES: Final[dict[str, Pooling]] = {"pooling_mode_lasttoken": "last", "pooling_mode_mean_tokens": "mean"}


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
        self,
        validator: Validator,
        client: SchedulerClient,
        limits: ModelLimits,
        own_pooling: Pooling | None,
        recorder: Recorder,
    ) -> None:
        """`own_pooling` is the model's, None where that is not supported."""
        self._recorder = recorder
        self._validator = validator
        self._client = client
        self._limits = limits
        self._own_pooling = own_pooling
        self._submitting = asyncio.Semaphore(_MAX_SUBMITTING)

    async def embed(
        self,
        inputs: Sequence[str | Sequence[int]],
        params: PoolingParams,
        context: RequestContext,
        fields: Sequence[str],
    ) -> list[Embedding]:
        """The embeddings of texts or token ids, in their order; all inputs run at once.

        `fields` are the client's names of the inputs. If any of them is refused, none runs: raises InvalidRequestError
        and ContextLengthError for inputs and parameters, and what the scheduler says.
        """
        pooling = self._check(params)
        valid = []
        for entry, field in zip(inputs, fields, strict=True):
            valid.append(await self._token_ids(entry, params.truncate_prompt_tokens, context, field))
            await asyncio.sleep(0)  # short texts are tokenised without a pause: others have their turn in between
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(
                        self._embed(
                            inputs[index],
                            token_ids,
                            pooling,
                            params,
                            replace(context, request_id=f"{context.request_id}-{index}", prompt_index=index),
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
        longest, kept = self._limits.max_model_len, params.truncate_prompt_tokens
        if kept is not None and kept > longest:
            message = f"truncate_prompt_tokens must be at most {longest}, the model's context, not {kept}"
            raise InvalidRequestError(message, field="truncate_prompt_tokens")
        pooling = params.pooling or self._own_pooling
        if pooling is None:
            message = f'the model\'s own pooling ({_POOLING_FILE}) is not supported; pooling must be "last" or "mean"'
            raise InvalidRequestError(message, field="pooling")
        return pooling

    async def _token_ids(
        self, entry: str | Sequence[int], truncate: int | None, context: RequestContext, field: str
    ) -> list[int]:
        if isinstance(entry, str):
            token_ids = await self._validator.encode(
                entry, field=field, add_special_tokens=context.add_special_tokens, truncates=truncate is not None
            )
        else:
            token_ids = list(entry)
            self._validator.check_token_ids(token_ids, field)
        longest = self._limits.max_model_len
        if truncate is not None:
            token_ids = token_ids[-(longest if truncate == -1 else truncate) :]
        if not token_ids:
            raise InvalidRequestError(f"{field} is empty", field=field)
        if len(token_ids) > longest:
            message = f"This model's maximum context length is {longest} tokens. However, {field} has {len(token_ids)}."
            raise ContextLengthError(f"{message} Please reduce its length.", field=field)
        return token_ids

    async def _embed(
        self,
        prompt: str | Sequence[int],
        token_ids: list[int],
        pooling: Pooling,
        params: PoolingParams,
        context: RequestContext,
    ) -> Embedding:
        keeper = self._recorder.begin(context, prompt, len(token_ids), "embeddings")
        message = scheduler_pb2.SubmitRequest(
            request_id=context.request_id,
            prompt_token_ids=pack_u32(token_ids),
            sequences=[scheduler_pb2.SequenceState(index=0)],
            pooling=pooling_to_proto(pooling),
            priority=context.priority,
            tenant=context.tenant.message,
            prompt_index=context.prompt_index,
            cache_salt=context.cache_salt.encode(),
            trace_parent=keeper.record.trace_parent,
        )
        try:
            async with self._submitting:
                stream = await self._client.submit(message)
        except QuireError as error:
            keeper.refused(error)
            raise
        except BaseException:  # the client has left
            keeper.end(["abort"])
            raise
        keeper.submitted()
        try:
            chunk = await stream.next_chunk()
        except BaseException as error:
            self._client.abort(stream, scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED)
            keeper.end((), error=error) if isinstance(error, QuireError) else keeper.end(["abort"])
            raise
        # There is nothing to come but the embedding, which ends the request.
        self._client.release(stream)
        keeper.record.num_attempts += stream.attempt
        keeper.started(chunk.cached_tokens or 0, chunk.queued_s)
        keeper.end(["stop"])
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


def field_names(field: str, inputs: Sequence[object]) -> list[str]:
    """What inputs are called in errors, where `field` holds one or several."""
    return [field] if len(inputs) == 1 else [f"{field}[{index}]" for index in range(len(inputs))]


def usage_of(embeddings: Sequence[Embedding]) -> Usage:
    """Tokens of all inputs together."""
    return Usage(
        prompt_tokens=sum(len(embedding.prompt_token_ids) for embedding in embeddings),
        completion_tokens=0,
        cached_tokens=sum(embedding.cached_tokens for embedding in embeddings),
    )


def own_pooling(model: str, revision: str | None) -> Pooling | None:
    """How a checkpoint says it is pooled, as sentence-transformers writes it: last if it is silent.

    None for a way that is not supported, and for several at once. Raises CheckpointError for a damaged file.
    """
    config = read_json(model, _POOLING_FILE, revision)
    if not config:
        return "last"
    modes = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    return _MODES.get(modes[0]) if len(modes) == 1 else None
