"""The gRPC call Embed: from its message to the engine and back."""

from __future__ import annotations

import uuid

from quire.errors import InvalidRequestError
from quire.gateway.engine import Engine
from quire.gateway.origin import Origin
from quire.gateway.pooling import MAX_INPUTS, usage_of
from quire.gateway.tenants import Tenant
from quire.gateway.validation import RequestContext
from quire.pooling_params import PoolingParams, pooling_from_proto
from quire.v1 import generate_pb2


async def embed(
    engine: Engine, request: generate_pb2.EmbedRequest, tenant: Tenant, origin: Origin
) -> generate_pb2.EmbedResponse:
    """Raises QuireError; whoever cancels it aborts what runs."""
    engine.check_load(tenant)
    params = PoolingParams(
        pooling=pooling_from_proto(request.pooling),
        dimensions=request.dimensions if request.HasField("dimensions") else None,
        truncate_prompt_tokens=request.truncate_prompt_tokens if request.HasField("truncate_prompt_tokens") else None,
    )
    if not 0 < len(request.inputs) <= MAX_INPUTS:
        message = f"inputs must hold between 1 and {MAX_INPUTS} inputs, not {len(request.inputs)}"
        raise InvalidRequestError(message, field="inputs")
    fields = [f"inputs[{index}]" for index in range(len(request.inputs))]
    inputs = [_input(entry, field) for entry, field in zip(request.inputs, fields, strict=True)]
    context = RequestContext(f"embd-{uuid.uuid4().hex}", tenant, origin=origin)
    embeddings = await engine.embed(inputs, params, context, fields=fields)
    usage = usage_of(embeddings)
    return generate_pb2.EmbedResponse(
        embeddings=[generate_pb2.Embedding(values=embedding.values) for embedding in embeddings],
        usage=generate_pb2.Usage(prompt_tokens=usage.prompt_tokens, cached_tokens=usage.cached_tokens),
    )


def _input(entry: generate_pb2.EmbedInput, field: str) -> str | list[int]:
    match entry.WhichOneof("input"):
        case "text":
            return entry.text
        case "token_ids":
            return list(entry.token_ids.ids)
    raise InvalidRequestError(f"{field}: one of text and token_ids must be set", field=field)
