"""One running Generate call, whatever its prompt: a source of responses."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol, TypeAlias

from quire.gateway.chat.deltas import ChatDelta
from quire.gateway.chat.prompt import ChatPrompt
from quire.gateway.chat.run import ChatRun
from quire.gateway.engine import Engine
from quire.gateway.generation import Generation
from quire.gateway.grpc_api.requests import prompt_of
from quire.gateway.grpc_api.responses import completion_delta, prompt_logprobs_messages, usage_message
from quire.gateway.origin import Origin
from quire.gateway.tenants import Tenant
from quire.gateway.validation import RequestContext, ValidRequest
from quire.internal.v1 import scheduler_pb2
from quire.sampling_params import SamplingParams
from quire.v1 import generate_pb2

AbortReason: TypeAlias = "scheduler_pb2.AbortReason.ValueType"


class ResponseRun(Protocol):
    """A request's responses. Whoever leaves them early must close the run, which aborts it."""

    def responses(self) -> AsyncGenerator[generate_pb2.GenerateResponse, None]:
        """All of them, as they come. Raises the QuireError that ends the request."""

    def close(self, reason: AbortReason) -> None:
        """Aborts what still runs."""


async def start_run(
    engine: Engine, request: generate_pb2.GenerateRequest, request_id: str, tenant: Tenant, origin: Origin
) -> ResponseRun:
    """Validates a request and queues it. Raises QuireError."""
    engine.check_load(tenant)
    params = SamplingParams.from_proto(request.sampling_params)
    prompt, field = prompt_of(request)
    about = RequestContext(request_id, tenant, request.priority, request.cache_salt, origin=origin)
    if isinstance(prompt, ChatPrompt):
        run = await ChatRun.submit(engine, prompt, params, about, field=field)
        return _ChatResponses(run, _Writer(request, run.requests[0]))
    valid = await engine.validator.validate(prompt, params, about, field=field)
    return _TextResponses(await engine.submit(valid), _Writer(request, valid))


class _Writer:
    """Writes a request's responses; the first carries the prompt's ids, if they are asked for."""

    def __init__(self, request: generate_pb2.GenerateRequest, valid: ValidRequest) -> None:
        self._request_id = valid.request_id
        self._prompt_token_ids: Sequence[int] = valid.prompt_token_ids if request.return_token_ids else ()

    def write(self, deltas: Sequence[generate_pb2.CompletionDelta]) -> generate_pb2.GenerateResponse:
        response = generate_pb2.GenerateResponse(request_id=self._request_id, deltas=deltas)
        if self._prompt_token_ids:
            response.prompt_token_ids.extend(self._prompt_token_ids)
            self._prompt_token_ids = ()
        return response


class _TextResponses:
    """Continuations of a prompt."""

    def __init__(self, generation: Generation, writer: _Writer) -> None:
        self._generation = generation
        self._writer = writer

    async def responses(self) -> AsyncGenerator[generate_pb2.GenerateResponse, None]:
        async for delta in self._generation:
            response = self._writer.write([completion_delta(part) for part in delta.deltas])
            if delta.prompt_logprobs is not None:
                response.prompt_logprobs.extend(prompt_logprobs_messages(delta.prompt_logprobs))
            if delta.usage is not None:
                response.usage.CopyFrom(usage_message(delta.usage))
            yield response

    def close(self, reason: AbortReason) -> None:
        self._generation.close(reason)


class _ChatResponses:
    """Turns of a chat."""

    def __init__(self, run: ChatRun, writer: _Writer) -> None:
        self._run = run
        self._writer = writer

    async def responses(self) -> AsyncGenerator[generate_pb2.GenerateResponse, None]:
        async for batch in self._run.batches():
            # What only opens a turn says nothing here.
            response = self._writer.write([completion_delta(delta) for _, delta in batch if not _is_empty(delta)])
            if (positions := self._run.prompt_logprobs.pop(0, None)) is not None:
                response.prompt_logprobs.extend(prompt_logprobs_messages(positions))
            if self._run.usages:
                response.usage.CopyFrom(usage_message(self._run.usages[0]))
            yield response

    def close(self, reason: AbortReason) -> None:
        self._run.close(reason)


def _is_empty(delta: ChatDelta) -> bool:
    return not (delta.token_ids or delta.content or delta.reasoning_content or delta.tool_calls or delta.finish_reason)
