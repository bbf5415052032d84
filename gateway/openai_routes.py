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
from quire.gateway.engine import Engine
from quire.gateway.generation_group import GenerationGroup
from quire.gateway.openai_errors import encode_error
from quire.gateway.openai_frames import AnswerWriter, ChatShape, CompletionShape, Shape
from quire.gateway.openai_protocol import (
    COMPLETION_MAX_TOKENS,
    ChatCompletionRequest,
    CompletionRequest,
    OpenAIRequest,
    parse_request,
    request_body_schema,
)
from quire.gateway.streaming import EventStream, read_body, unless_disconnected
from quire.gateway.validation import ValidRequest
from quire.outputs import CompletionDelta, merge_deltas

logger = logging.getLogger(__name__)


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
    valid = await _gather(
        [validate(prompt, request_id=f"cmpl-{request_id}-{index}") for index, prompt in enumerate(request.prompt)]
    )
    return await _answer(engine, request, valid, CompletionShape(engine.tokenizer.vocabulary), request_id)


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
    valid = await engine.validator.validate(
        request.prompt(), request.sampling_params(), f"chatcmpl-{request_id}", field="messages"
    )
    return await _answer(engine, request, [valid], ChatShape(engine.tokenizer.vocabulary), request_id)


async def _answer(
    engine: Engine, request: OpenAIRequest, valid: Sequence[ValidRequest], shape: Shape, request_id: str
) -> Response:
    include_usage = request.include_usage
    writer = AnswerWriter(shape, request_id, engine.limits.model, include_usage=include_usage)
    group = await GenerationGroup.submit(engine, valid)
    if request.stream:
        return EventStream(_events(group, writer, include_usage=include_usage), group.close)
    try:
        return Response(await _whole(group, writer), media_type="application/json")
    finally:
        group.close()


async def _whole(group: GenerationGroup, writer: AnswerWriter) -> bytes:
    parts: list[list[CompletionDelta]] = [[] for _ in range(group.num_choices)]
    async with contextlib.aclosing(group.batches()) as batches:
        async for batch in batches:
            for index, delta in batch:
                parts[index].append(delta)
    return writer.whole([merge_deltas(deltas) for deltas in parts], group.usages)


async def _events(group: GenerationGroup, writer: AnswerWriter, *, include_usage: bool) -> AsyncGenerator[bytes, None]:
    """The events of a stream; an error ends it with an `error` event and without [DONE]."""
    try:
        async with contextlib.aclosing(group.batches()) as batches:
            async for batch in batches:
                if events := b"".join([writer.event(delta, index) for index, delta in batch]):
                    yield events
        if include_usage:
            yield writer.usage_event(group.usages)
        yield b"data: [DONE]\n\n"
    except Exception as error:
        if not isinstance(error, QuireError):
            logger.exception("a stream failed")
        yield b"data: " + encode_error(error) + b"\n\n"
