"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import uuid

from fastapi import APIRouter, Request, Response
from msgspec import Struct

from quire.gateway.anthropic.errors import in_anthropic_shape
from quire.gateway.anthropic.events import MessageWriter
from quire.gateway.anthropic.request import CountTokensRequest, MessagesRequest
from quire.gateway.chat.run import ChatRun
from quire.gateway.chat.turn_answer import answer_turn
from quire.gateway.engine import Engine
from quire.gateway.openai.protocol import parse_request, request_body_schema
from quire.gateway.sse import encode
from quire.gateway.streaming import read_body, unless_disconnected
from quire.gateway.validation import RequestContext

# For the API's description.
BODIES = (MessagesRequest, CountTokensRequest)


class TokenCount(Struct):
    """The answer of count_tokens."""

    input_tokens: int


def anthropic_routes(engine: Engine) -> APIRouter:
    """The two endpoints."""
    router = APIRouter(tags=["generation"])

    @router.post("/v1/messages", openapi_extra=request_body_schema(MessagesRequest))
    @in_anthropic_shape
    async def create_message(http: Request) -> Response:
        """Answers a conversation, in the shape of Anthropic's Messages API."""
        request = parse_request(MessagesRequest, await read_body(http))
        with request.in_its_words():
            async with unless_disconnected(http.receive):
                return await _answer(engine, request)

    @router.post("/v1/messages/count_tokens", openapi_extra=request_body_schema(CountTokensRequest))
    @in_anthropic_shape
    async def count_tokens(http: Request) -> Response:
        """How many tokens the prompt of such a conversation has."""
        request = parse_request(CountTokensRequest, await read_body(http))
        with request.in_its_words():
            engine.validator.check_model(request.model)
            token_ids = await engine.validator.encode(request.chat(), field="messages")
        return Response(encode(TokenCount(len(token_ids))), media_type="application/json")

    return router


async def _answer(engine: Engine, request: MessagesRequest) -> Response:
    engine.validator.check_model(request.model)
    request_id = uuid.uuid4().hex
    context = RequestContext(f"msg_{request_id}")
    run = await ChatRun.submit(engine, request.chat(), request.sampling_params(), context)
    prompt_tokens = len(run.requests[0].prompt_token_ids)
    writer = MessageWriter(request_id, engine.limits.model, prompt_tokens)
    return await answer_turn(run, writer, stream=request.stream is True)
