"""Embed: from what callers give to the message, and from the answer to vectors."""

from __future__ import annotations

from collections.abc import Iterable

from quire.errors import InvalidRequestError
from quire.pooling_params import PoolingParams, pooling_to_proto
from quire.prompts import check_text, check_token_ids
from quire.v1 import generate_pb2

# A text or token ids.
EmbedInput = str | Iterable[int]


def embed_request(inputs: Iterable[EmbedInput], params: PoolingParams | None, model: str) -> generate_pb2.EmbedRequest:
    """Raises InvalidRequestError that names the input at fault."""
    if isinstance(inputs, str):
        raise InvalidRequestError("inputs must be a list of texts or token ids, not one text", field="inputs")
    params = params or PoolingParams()
    request = generate_pb2.EmbedRequest(
        model=check_text(model, "model"),
        inputs=[_input(entry, f"inputs[{index}]") for index, entry in enumerate(inputs)],
        dimensions=params.dimensions,
        truncate_prompt_tokens=params.truncate_prompt_tokens,
    )
    if params.pooling is not None:
        request.pooling = pooling_to_proto(params.pooling)
    return request


def vectors(response: generate_pb2.EmbedResponse) -> list[list[float]]:
    """In the order of the inputs."""
    return [list(embedding.values) for embedding in response.embeddings]


def _input(entry: EmbedInput, field: str) -> generate_pb2.EmbedInput:
    if isinstance(entry, str):
        return generate_pb2.EmbedInput(text=check_text(entry, field))
    return generate_pb2.EmbedInput(token_ids=generate_pb2.TokenIds(ids=check_token_ids(entry, field)))
