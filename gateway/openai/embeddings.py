"""POST /v1/embeddings."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from msgspec import Struct
from pydantic import BaseModel, ConfigDict, Field

from quire.gateway.engine import Engine
from quire.gateway.openai.completions import Prompts
from quire.gateway.openai.frames import encode
from quire.gateway.openai.protocol import Integer, parse_request
from quire.gateway.openai.schemas import describe_route
from quire.gateway.origin import Origin, origin_of
from quire.gateway.pooling import Embedding, usage_of
from quire.gateway.request_ids import REQUEST_ID_PATTERN, request_id_of
from quire.gateway.streaming import read_body, unless_disconnected
from quire.gateway.tenants import Tenant, tenant_of
from quire.gateway.validation import RequestContext
from quire.pooling_params import Pooling, PoolingParams


class PoolingRequest(BaseModel):
    """What all requests share whose texts become vectors; the extensions to OpenAI's fields are vLLM's."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    model: str | None = None
    user: str | None = None
    pooling: Pooling | None = None
    truncate_prompt_tokens: Integer | None = None
    add_special_tokens: bool | None = None
    request_id: Annotated[str, Field(pattern=REQUEST_ID_PATTERN)] | None = None
    priority: Annotated[Integer, Field(ge=-(2**31), lt=2**31)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None

    def params(self, dimensions: int | None = None) -> PoolingParams:
        """Raises InvalidRequestError."""
        return PoolingParams(
            pooling=self.pooling, dimensions=dimensions, truncate_prompt_tokens=self.truncate_prompt_tokens
        )

    def context(self, request_id: str, tenant: Tenant, origin: Origin) -> RequestContext:
        """What the request carries besides its texts."""
        priority, salt = self.priority or 0, self.cache_salt or ""
        return RequestContext(request_id, tenant, priority, salt, self.add_special_tokens, origin=origin)


class EmbeddingRequest(PoolingRequest):
    """The body of POST /v1/embeddings."""

    input: Prompts
    # base64: of little-endian float32.
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Integer | None = None


class PoolingUsage(Struct):
    """`usage` of all inputs together."""

    prompt_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, embeddings: Sequence[Embedding]) -> PoolingUsage:
        """The sum."""
        tokens = usage_of(embeddings).prompt_tokens
        return cls(tokens, tokens)


class EmbeddingFrame(Struct):
    """The embedding of one input."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingList(Struct):
    """The answer of /v1/embeddings."""

    data: Sequence[EmbeddingFrame]
    model: str
    usage: PoolingUsage
    object: str = "list"


BODIES = (EmbeddingRequest,)
ANSWERS = (EmbeddingList,)


def embedding_routes(engine: Engine) -> APIRouter:
    """The endpoint."""
    router = APIRouter(tags=["embeddings"])

    @router.post("/v1/embeddings", **describe_route(EmbeddingRequest, EmbeddingList))
    async def create_embeddings(http: Request) -> Response:
        """Turns texts or token ids into vectors of length 1."""
        request = parse_request(EmbeddingRequest, await read_body(http))
        engine.validator.check_model(request.model)
        async with unless_disconnected(http.receive):
            request_id = f"embd-{request_id_of(http.scope, request.request_id)}"
            context = request.context(request_id, tenant_of(http.scope), origin_of(http.scope))
            embeddings = await engine.embed(request.input, request.params(request.dimensions), context)
        is_base64 = request.encoding_format == "base64"
        data = [EmbeddingFrame(index, _written(entry, is_base64=is_base64)) for index, entry in enumerate(embeddings)]
        answer = EmbeddingList(data, engine.limits.model, PoolingUsage.of(embeddings))
        return Response(encode(answer), media_type="application/json")

    return router


def _written(embedding: Embedding, *, is_base64: bool) -> list[float] | str:
    # The wire's byte order is this machine's: quire.columns refuses others.
    return b64encode(embedding.values.tobytes()).decode() if is_base64 else embedding.values.tolist()
