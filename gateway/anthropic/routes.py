"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from msgspec import Struct

from quire.gateway.anthropic.answer import MessageObject
from quire.gateway.anthropic.errors import ERRORS, REQUEST_ID_HEADER, ErrorFrame
from quire.gateway.anthropic.events import MessageWriter
from quire.gateway.anthropic.request import CountTokensRequest, MessagesRequest
from quire.gateway.chat.run import ChatRun
from quire.gateway.chat.turn_answer import answer_turn
from quire.gateway.engine import Engine
from quire.gateway.openai.protocol import parse_request
from quire.gateway.openai.schemas import describe_route
from quire.gateway.origin import origin_of
from quire.gateway.request_ids import request_id_of
from quire.gateway.sse import encode
from quire.gateway.streaming import read_body, unless_disconnected
from quire.gateway.tenants import tenant_of
from quire.gateway.validation import RequestContext
from quire.sampling_params import SamplingParams


class TokenCount(Struct):
    """The answer of count_tokens."""

    input_tokens: int


# For the API's description.
BODIES = (MessagesRequest, CountTokensRequest)
ANSWERS = (MessageObject, TokenCount, ErrorFrame)


def anthropic_routes(engine: Engine) -> APIRouter:
    """The two endpoints. Their errors are for `answer_error` to write."""
    router = APIRouter(tags=["generation"])
    errors: dict[str, Any] = {"error": ErrorFrame, "errors": ERRORS}

    @router.post("/v1/messages", **describe_route(MessagesRequest, MessageObject, streams=True, **errors))
    async def create_message(http: Request) -> Response:
        """Answers a conversation, in the shape of Anthropic's Messages API."""
        request = parse_request(MessagesRequest, await read_body(http))
        request_id = request_id_of(http.scope)
        with request.in_its_words():
            async with unless_disconnected(http.receive):
                context = RequestContext(f"msg_{request_id}", tenant_of(http.scope), origin=origin_of(http.scope))
                response = await _answer(engine, request, request_id, context)
        response.headers[REQUEST_ID_HEADER] = request_id
        return response

    @router.post("/v1/messages/count_tokens", **describe_route(CountTokensRequest, TokenCount, **errors))
    async def count_tokens(http: Request) -> Response:
        """How many tokens the prompt of such a conversation has."""
        request = parse_request(CountTokensRequest, await read_body(http))
        with request.in_its_words():
            engine.validator.check_model(request.model)
            prompt = engine.chat_format.plan(request.chat(), SamplingParams()).prompt
            token_ids = await engine.validator.encode(prompt, field="messages")
        headers = {REQUEST_ID_HEADER: request_id_of(http.scope)}
        return Response(encode(TokenCount(len(token_ids))), headers=headers, media_type="application/json")

    return router


async def _answer(engine: Engine, request: MessagesRequest, request_id: str, context: RequestContext) -> Response:
    engine.validator.check_model(request.model)
    run = await ChatRun.submit(engine, request.chat(), request.sampling_params(), context)
    writer = MessageWriter(request_id, engine.limits.model, len(run.requests[0].prompt_token_ids))
    return await answer_turn(run, writer, stream=request.stream is True)
