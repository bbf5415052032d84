"""POST /v1/responses."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from quire.gateway.chat.run import ChatRun
from quire.gateway.chat.turn_answer import answer_turn
from quire.gateway.engine import Engine
from quire.gateway.openai.protocol import parse_request
from quire.gateway.openai.responses.answer import ResponseAnswer
from quire.gateway.openai.responses.events import ResponseWriter
from quire.gateway.openai.responses.objects import ResponseObject
from quire.gateway.openai.responses.request import ResponsesRequest
from quire.gateway.openai.responses.truncation import truncated
from quire.gateway.openai.schemas import describe_route
from quire.gateway.openai.tokens import TokenView
from quire.gateway.origin import origin_of
from quire.gateway.request_ids import request_id_of
from quire.gateway.streaming import read_body, unless_disconnected
from quire.gateway.tenants import tenant_of
from quire.gateway.validation import RequestContext

# For the API's description.
BODIES = (ResponsesRequest,)
ANSWERS = (ResponseObject,)


def responses_routes(engine: Engine) -> APIRouter:
    """The endpoint. There are none for responses that exist already, since none is kept."""
    router = APIRouter(tags=["generation"])

    @router.post("/v1/responses", **describe_route(ResponsesRequest, ResponseObject, streams=True))
    async def create_response(http: Request) -> Response:
        """Answers a conversation of typed items."""
        request = parse_request(ResponsesRequest, await read_body(http))
        with request.in_its_words():
            async with unless_disconnected(http.receive):
                request_id = request_id_of(http.scope, request.request_id)
                context = request.context(f"resp_{request_id}", tenant_of(http.scope), origin_of(http.scope))
                return await _respond(engine, request, request_id, context)

    return router


async def _respond(engine: Engine, request: ResponsesRequest, request_id: str, context: RequestContext) -> Response:
    engine.validator.check_model(request.model)
    params, prompt = request.sampling_params(), request.chat()
    if request.truncation == "auto":
        prompt = await truncated(engine, prompt, params)
    run = await ChatRun.submit(engine, prompt, params, context, field="input")
    tokenizer = engine.tokenizer
    tokens, defaults = TokenView(tokenizer.vocabulary), tokenizer.generation_defaults
    answer = ResponseAnswer(request, request_id, engine.limits.model, tokens, defaults)
    return await answer_turn(run, ResponseWriter(answer), stream=request.stream is True)
