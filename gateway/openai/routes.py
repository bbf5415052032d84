"""OpenAI-shape generation: /v1/completions and /v1/chat/completions.

All that can be wrong with a request, the scheduler's refusal included, is found before the status line is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import uuid
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from quire.errors import QuireError
from quire.gateway.chat.run import ChatRun
from quire.gateway.engine import Engine
from quire.gateway.generation_group import GenerationGroup
from quire.gateway.openai.chat import ChatCompletionRequest, ChatShape
from quire.gateway.openai.completions import COMPLETION_MAX_TOKENS, CompletionRequest, CompletionShape
from quire.gateway.openai.errors import encode_error
from quire.gateway.openai.frames import AnswerWriter, D, Shape, Source
from quire.gateway.openai.protocol import OpenAIRequest, parse_request, request_body_schema
from quire.gateway.streaming import EventStream, read_body, unless_disconnected
from quire.gateway.validation import RequestContext, ValidRequest

logger = logging.getLogger(__name__)

# For the API's description.
BODIES = (CompletionRequest, ChatCompletionRequest)


def generation_routes(engine: Engine) -> APIRouter:
    """The two endpoints."""
    router = APIRouter(tags=["generation"])

    @router.post("/v1/completions", openapi_extra=request_body_schema(CompletionRequest))
    async def create_completion(http: Request) -> Response:
        """Continues one or several prompts."""
        request = parse_request(CompletionRequest, await read_body(http))
        with request.in_its_words():
            async with unless_disconnected(http.receive):
                return await _complete(engine, request)

    @router.post("/v1/chat/completions", openapi_extra=request_body_schema(ChatCompletionRequest))
    async def create_chat_completion(http: Request) -> Response:
        """Answers a chat, which the model's own template turns into a prompt."""
        request = parse_request(ChatCompletionRequest, await read_body(http))
        with request.in_its_words():
            async with unless_disconnected(http.receive):
                return await _chat(engine, request)

    return router


async def _complete(engine: Engine, request: CompletionRequest) -> Response:
    engine.validator.check_model(request.model)
    params = request.sampling_params()
    request_id = uuid.uuid4().hex
    validate = functools.partial(engine.validator.validate, params=params, default_max_tokens=COMPLETION_MAX_TOKENS)
    about = [RequestContext(f"cmpl-{request_id}-{index}") for index in range(len(request.prompt))]
    valid = await _gather(
        [validate(prompt, context=context) for prompt, context in zip(request.prompt, about, strict=True)]
    )
    group = await GenerationGroup.submit(engine, valid)
    return await _answer(engine, request, group, CompletionShape(engine.tokenizer.vocabulary), request_id)


async def _gather(validations: Sequence[Coroutine[Any, Any, ValidRequest]]) -> list[ValidRequest]:
    """All results, worked out at the same time. Raises the first QuireError."""
    if len(validations) == 1:  # needs no task of its own
        return [await validations[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(validation) for validation in validations]
    except* QuireError as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _chat(engine: Engine, request: ChatCompletionRequest) -> Response:
    engine.validator.check_model(request.model)
    request_id = uuid.uuid4().hex
    about = RequestContext(f"chatcmpl-{request_id}")
    run = await ChatRun.submit(engine, request.prompt(), request.sampling_params(), about)
    return await _answer(engine, request, run, ChatShape(engine.tokenizer.vocabulary, request), request_id)


async def _answer(
    engine: Engine, request: OpenAIRequest, source: Source[D], shape: Shape[D], request_id: str
) -> Response:
    include_usage = request.include_usage
    writer = AnswerWriter(shape, request_id, engine.limits.model, include_usage=include_usage)
    if request.stream:
        return EventStream(_events(source, writer, include_usage=include_usage), source.close)
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
    return writer.whole(parts, source.usages)


async def _events(source: Source[D], writer: AnswerWriter[D], *, include_usage: bool) -> AsyncGenerator[bytes, None]:
    """The events of a stream; an error ends it with an `error` event and without [DONE]."""
    try:
        async with contextlib.aclosing(source.batches()) as batches:
            async for batch in batches:
                if events := b"".join([writer.event(delta, index) for index, delta in batch]):
                    yield events
        if include_usage:
            yield writer.usage_event(source.usages)
        yield b"data: [DONE]\n\n"
    except Exception as error:
        if not isinstance(error, QuireError):
            logger.exception("a stream failed")
        yield b"data: " + encode_error(error) + b"\n\n"
