"""OpenAI-shape generation: /v1/completions and /v1/chat/completions.

All that can be wrong with a request, the scheduler's refusal included, is found before the status line is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from quire.errors import QuireError
from quire.gateway.answer_size import check_answer_size
from quire.gateway.chat.run import ChatRun
from quire.gateway.engine import Engine
from quire.gateway.generation_group import GenerationGroup
from quire.gateway.openai.chat import ChatCompletionRequest
from quire.gateway.openai.chat_frames import ChatChoice, ChatShape
from quire.gateway.openai.completions import COMPLETION_MAX_TOKENS, CompletionChoice, CompletionRequest, CompletionShape
from quire.gateway.openai.errors import encode_error
from quire.gateway.openai.frames import Answer, AnswerOptions, AnswerWriter, D, Source
from quire.gateway.openai.protocol import OpenAIRequest, parse_request
from quire.gateway.openai.schemas import describe_route
from quire.gateway.openai.tokens import TokenView
from quire.gateway.origin import origin_of
from quire.gateway.request_ids import request_id_of
from quire.gateway.streaming import EventStream, read_body, unless_disconnected
from quire.gateway.tenants import tenant_of
from quire.gateway.validation import RequestContext, ValidRequest

logger = logging.getLogger(__name__)

# For the API's description.
BODIES = (CompletionRequest, ChatCompletionRequest)
ANSWERS = (Answer[CompletionChoice], Answer[ChatChoice])


def generation_routes(engine: Engine) -> APIRouter:
    """The two endpoints."""
    router = APIRouter(tags=["generation"])

    @router.post("/v1/completions", **describe_route(CompletionRequest, ANSWERS[0], streams=True))
    async def create_completion(http: Request) -> Response:
        """Continues one or several prompts."""
        request = parse_request(CompletionRequest, await read_body(http))
        with request.in_its_words():
            async with unless_disconnected(http.receive):
                request_id = request_id_of(http.scope, request.request_id)
                context = request.context(request_id, tenant_of(http.scope), origin_of(http.scope))
                return await _complete(engine, request, context)

    @router.post("/v1/chat/completions", **describe_route(ChatCompletionRequest, ANSWERS[1], streams=True))
    async def create_chat_completion(http: Request) -> Response:
        """Answers a chat, which the model's own template turns into a prompt."""
        request = parse_request(ChatCompletionRequest, await read_body(http))
        with request.in_its_words():
            async with unless_disconnected(http.receive):
                request_id = request_id_of(http.scope, request.request_id)
                context = request.context(request_id, tenant_of(http.scope), origin_of(http.scope))
                return await _chat(engine, request, context)

    return router


async def _complete(engine: Engine, request: CompletionRequest, context: RequestContext) -> Response:
    engine.validator.check_model(request.model)
    params = request.sampling_params()
    validate = functools.partial(engine.validator.validate, params=params, default_max_tokens=COMPLETION_MAX_TOKENS)
    request_id = context.request_id
    valid = await _gather(
        [
            functools.partial(
                validate, prompt, context=replace(context, request_id=f"cmpl-{request_id}-{index}", prompt_index=index)
            )
            for index, prompt in enumerate(request.prompt)
        ]
    )
    if len(valid) > 1:
        check_answer_size(valid)
    echoes = [await _text_of(engine, entry) for entry in valid] if request.echo else None
    group = await GenerationGroup.submit(engine, valid, prompts_only=request.prompts_only)
    tokens = _token_view(engine, request)
    shape = CompletionShape(tokens, group, echoes=echoes, prompt_logprobs=request.prompt_logprobs is not None)
    options = AnswerOptions(tokens, request.include_usage, request.continuous_usage)
    return await _answer(request, group, AnswerWriter(shape, request_id, engine, group, options), request_id)


async def _text_of(engine: Engine, request: ValidRequest) -> str:
    """A prompt's text, whatever form it came in."""
    return await engine.tokenizer.decode(request.prompt_token_ids) if request.prompt is None else request.prompt


def _token_view(engine: Engine, request: OpenAIRequest) -> TokenView:
    return TokenView(
        engine.tokenizer.vocabulary,
        as_ids=request.return_tokens_as_token_ids is True,
        with_ids=request.return_token_ids is True,
    )


async def _gather(validations: Sequence[Callable[[], Coroutine[Any, Any, ValidRequest]]]) -> list[ValidRequest]:
    """All results, worked out at the same time. Raises the first QuireError."""
    if len(validations) == 1:  # needs no task of its own
        return [await validations[0]()]
    tasks: list[asyncio.Task[ValidRequest]] = []
    try:
        async with asyncio.TaskGroup() as group:
            for validation in validations:
                tasks.append(group.create_task(validation()))
                await asyncio.sleep(0)  # short texts are tokenised without a pause, and others want their turn
    except* QuireError as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _chat(engine: Engine, request: ChatCompletionRequest, context: RequestContext) -> Response:
    engine.validator.check_model(request.model)
    request_id = context.request_id
    about = replace(context, request_id=f"chatcmpl-{request_id}")
    run = await ChatRun.submit(engine, request.prompt(), request.sampling_params(), about)
    tokens = _token_view(engine, request)
    options = AnswerOptions(
        tokens,
        request.include_usage,
        request.continuous_usage,
        prompt_token_ids=tokens.with_ids,
        prompt_logprobs=request.prompt_logprobs is not None,
    )
    shape = ChatShape(tokens, request)
    return await _answer(request, run, AnswerWriter(shape, request_id, engine, run, options), request_id)


async def _answer(request: OpenAIRequest, source: Source[D], writer: AnswerWriter[D], request_id: str) -> Response:
    if request.stream:
        events = _events(source, writer, request_id, include_usage=request.include_usage)
        return EventStream(events, source.close)
    try:
        return Response(await _whole(source, writer), media_type="application/json")
    finally:
        source.close()


async def _whole(source: Source[D], writer: AnswerWriter[D]) -> bytes:
    parts: list[list[D]] = [[] for _ in range(source.num_choices)]
    async with contextlib.aclosing(source.batches()) as batches:
        async for batch in batches:
            for index, delta in batch:
                parts[index].append(delta)
    return writer.whole(parts)


async def _events(
    source: Source[D], writer: AnswerWriter[D], request_id: str, *, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    """The events of a stream; an error ends it with an `error` event and without [DONE]."""
    try:
        async with contextlib.aclosing(source.batches()) as batches:
            async for batch in batches:
                if events := b"".join([writer.event(delta, index) for index, delta in batch]):
                    yield events
        if include_usage:
            yield writer.usage_event()
        yield b"data: [DONE]\n\n"
    except Exception as error:
        if not isinstance(error, QuireError):
            logger.exception("the stream of request %s failed", request_id)
        yield b"data: " + encode_error(error) + b"\n\n"
