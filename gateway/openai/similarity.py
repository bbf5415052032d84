"""/v1/score and /rerank: how alike texts are, by the cosine of their embeddings.

Requests and answers are vLLM's, whose /rerank is that of Jina and Cohere.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from msgspec import UNSET, Struct, UnsetType
from pydantic import Field, PlainValidator, WithJsonSchema

from quire.errors import InvalidRequestError
from quire.gateway.engine import Engine
from quire.gateway.openai.embeddings import PoolingRequest, PoolingUsage
from quire.gateway.openai.frames import encode
from quire.gateway.openai.protocol import TEXTS_SCHEMA, Integer, parse_request
from quire.gateway.openai.schemas import describe_route
from quire.gateway.origin import origin_of
from quire.gateway.pooling import MAX_INPUTS, Embedding, cosine_similarity, field_names
from quire.gateway.request_ids import request_id_of
from quire.gateway.streaming import read_body, unless_disconnected
from quire.gateway.tenants import tenant_of
from quire.gateway.validation import RequestContext


def _parse_texts(value: object) -> list[str]:
    """A text or a list of them, as a list."""
    return [value] if isinstance(value, str) else [_text(entry, "") for entry in _entries(value)]


def _parse_documents(value: object) -> list[str]:
    """Texts, or objects that hold one and nothing else."""
    return [
        _text(entry["text"] if isinstance(entry, dict) and entry.keys() == {"text"} else entry, ' or {"text": string}')
        for entry in _entries(value)
    ]


def _entries(value: object) -> list[object]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_INPUTS:
        raise ValueError(f"must be a list of 1 to {MAX_INPUTS} texts")
    return value


def _text(entry: object, otherwise: str) -> str:
    if not isinstance(entry, str):
        raise ValueError(f"holds something that is no string{otherwise}")
    return entry


_DOCUMENT_SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string"}},
    "required": ["text"],
    "additionalProperties": False,
}
_SIZE = {"minItems": 1, "maxItems": MAX_INPUTS}
_DOCUMENTS_SCHEMA: dict[str, Any] = {
    "type": "array",
    "items": {"anyOf": [{"type": "string"}, _DOCUMENT_SCHEMA]},
    **_SIZE,
}

Texts = Annotated[
    list[str],
    PlainValidator(_parse_texts),
    WithJsonSchema({"anyOf": [{"type": "string"}, {**TEXTS_SCHEMA, **_SIZE}]}),
]
Documents = Annotated[list[str], PlainValidator(_parse_documents), WithJsonSchema(_DOCUMENTS_SCHEMA)]


class ScoreRequest(PoolingRequest):
    """The body of POST /v1/score: one text with one or many, or as many with as many, pair by pair."""

    text_1: Texts
    text_2: Texts


class RerankRequest(PoolingRequest):
    """The body of POST /rerank."""

    query: str
    documents: Documents
    # Results wanted; 0 or null: all.
    top_n: Annotated[Integer, Field(ge=0)] | None = None
    return_documents: bool | None = None


class Score(Struct):
    """The similarity of one pair."""

    index: int
    score: float
    object: str = "score"


class ScoreList(Struct):
    """The answer of /v1/score."""

    id: str
    created: int
    model: str
    data: Sequence[Score]
    usage: PoolingUsage
    object: str = "list"


class DocumentFrame(Struct):
    """A document in an answer."""

    text: str


class RerankResult(Struct):
    """One document's place in the ranking."""

    # Of the document in the request.
    index: int
    relevance_score: float
    document: DocumentFrame | UnsetType = UNSET


class Ranking(Struct):
    """The answer of /rerank, most relevant first."""

    id: str
    model: str
    results: Sequence[RerankResult]
    usage: PoolingUsage


BODIES = (ScoreRequest, RerankRequest)
ANSWERS = (ScoreList, Ranking)


def similarity_routes(engine: Engine) -> APIRouter:
    """The endpoints; each of the names by which clients know them."""
    router = APIRouter(tags=["embeddings"])

    @router.post("/v1/score", **describe_route(ScoreRequest, ScoreList))
    @router.post("/score", include_in_schema=False)
    async def score(http: Request) -> Response:
        """Says how alike pairs of texts are, from -1 to 1."""
        request = parse_request(ScoreRequest, await read_body(http))
        engine.validator.check_model(request.model)
        async with unless_disconnected(http.receive):
            request_id = f"score-{request_id_of(http.scope, request.request_id)}"
            context = request.context(request_id, tenant_of(http.scope), origin_of(http.scope))
            return _json(await _score(engine, request, context))

    @router.post("/rerank", **describe_route(RerankRequest, Ranking))
    @router.post("/v1/rerank", include_in_schema=False)
    @router.post("/v2/rerank", include_in_schema=False)
    async def rerank(http: Request) -> Response:
        """Orders documents by how alike they are to a query."""
        request = parse_request(RerankRequest, await read_body(http))
        engine.validator.check_model(request.model)
        async with unless_disconnected(http.receive):
            request_id = f"rerank-{request_id_of(http.scope, request.request_id)}"
            context = request.context(request_id, tenant_of(http.scope), origin_of(http.scope))
            return _json(await _rerank(engine, request, context))

    return router


async def _score(engine: Engine, request: ScoreRequest, context: RequestContext) -> ScoreList:
    first, second = request.text_1, request.text_2
    if len(first) not in (1, len(second)):
        message = f"text_1 has {len(first)} texts and text_2 {len(second)}; it must have one, or as many"
        raise InvalidRequestError(message, field="text_1")
    fields = field_names("text_1", first) + field_names("text_2", second)
    embeddings = await engine.embed([*first, *second], request.params(), context, fields=fields)
    left, right = embeddings[: len(first)], embeddings[len(first) :]
    pairs = zip(left if len(left) == len(right) else left * len(right), right, strict=True)
    data = [Score(index, cosine_similarity(one, other)) for index, (one, other) in enumerate(pairs)]
    return ScoreList(context.request_id, int(time.time()), engine.limits.model, data, PoolingUsage.of(embeddings))


async def _rerank(engine: Engine, request: RerankRequest, context: RequestContext) -> Ranking:
    texts = request.documents
    fields = ["query", *(f"documents[{index}]" for index in range(len(texts)))]
    embeddings = await engine.embed([request.query, *texts], request.params(), context, fields=fields)
    query, *documents = embeddings
    results = [_result(request, index, query, document) for index, document in enumerate(documents)]
    # Equally relevant ones stay in their order.
    results.sort(key=lambda result: result.relevance_score, reverse=True)
    return Ranking(
        context.request_id, engine.limits.model, results[: request.top_n or len(results)], PoolingUsage.of(embeddings)
    )


def _result(request: RerankRequest, index: int, query: Embedding, document: Embedding) -> RerankResult:
    written = UNSET if request.return_documents is False else DocumentFrame(request.documents[index])
    return RerankResult(index, cosine_similarity(query, document), written)


def _json(answer: Struct) -> Response:
    return Response(encode(answer), media_type="application/json")
