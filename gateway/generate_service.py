"""The public gRPC service: from messages to the engine's own types and back."""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc

from quire.errors import InvalidRequestError, ServiceUnavailableError
from quire.gateway.chat.prompt import ChatPrompt
from quire.gateway.engine import Engine
from quire.gateway.generation import Generation
from quire.gateway.idempotency import AbortReason, RunRegistry, run_once
from quire.gateway.pooling import MAX_INPUTS, PoolingParams, pooling_from_proto, usage_of
from quire.gateway.validation import Prompt, RequestContext
from quire.internal.v1 import scheduler_pb2
from quire.outputs import CompletionDelta, GenerationDelta, finish_reason_to_proto
from quire.rpc import errors_to_status
from quire.sampling_params import SamplingParams
from quire.v1 import generate_pb2, generate_pb2_grpc

_MAX_REQUEST_ID_LENGTH = 256

Context = grpc.aio.ServicerContext[Any, Any]


class GenerateService(generate_pb2_grpc.GenerateServiceServicer):
    """Serves while an engine is attached; before and after, every call is UNAVAILABLE."""

    def __init__(self) -> None:
        self._attached: Engine | None = None
        self._runs = RunRegistry()

    def attach(self, engine: Engine) -> None:
        """Begins to serve."""
        self._attached = engine

    def detach(self) -> None:
        """Takes no more calls; those that run go on."""
        self._attached = None

    async def Generate(  # noqa: N802
        self, request: generate_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[generate_pb2.GenerateResponse]:
        """See the proto."""
        async with errors_to_status(context):
            engine = self._engine_for(request.model)
            if len(request.request_id) > _MAX_REQUEST_ID_LENGTH:
                message = f"request_id is longer than {_MAX_REQUEST_ID_LENGTH} characters"
                raise InvalidRequestError(message, field="request_id")
            request_id = request.request_id or uuid.uuid4().hex

            async def start() -> Generation:
                params = SamplingParams.from_proto(request.sampling_params)
                prompt, field = _prompt(request)
                about = RequestContext(request_id, request.priority, request.cache_salt)
                valid = await engine.validator.validate(prompt, params, about, field=field)
                return await engine.submit(valid)

            def leaving() -> AbortReason:
                return _leaving(context)

            if request.request_id:
                deltas = self._runs.follow(request_id, _content(request), start, leaving)
            else:  # an id that nobody knows is never joined
                deltas = run_once(start, leaving)
            async with contextlib.aclosing(deltas):
                async for delta in deltas:
                    yield _response(request_id, delta)

    async def ListModels(  # noqa: N802
        self, request: generate_pb2.ListModelsRequest, context: Context
    ) -> generate_pb2.ListModelsResponse:
        """See the proto."""
        async with errors_to_status(context):
            engine = self._engine_for("")
            model = generate_pb2.Model(
                id=engine.limits.model, max_model_len=engine.limits.max_model_len, created=engine.created
            )
            return generate_pb2.ListModelsResponse(models=[model])

    async def Tokenize(  # noqa: N802
        self, request: generate_pb2.TokenizeRequest, context: Context
    ) -> generate_pb2.TokenizeResponse:
        """See the proto."""
        async with errors_to_status(context):
            engine = self._engine_for(request.model)
            field = request.WhichOneof("input")
            if field is None:
                raise InvalidRequestError("one of text and chat must be set", field="input")
            token_ids = await engine.validator.encode(
                request.text if field == "text" else _chat(request.chat),
                field=field,
                add_special_tokens=request.add_special_tokens if request.HasField("add_special_tokens") else None,
            )
            return generate_pb2.TokenizeResponse(token_ids=token_ids, max_model_len=engine.limits.max_model_len)

    async def Detokenize(  # noqa: N802
        self, request: generate_pb2.DetokenizeRequest, context: Context
    ) -> generate_pb2.DetokenizeResponse:
        """See the proto."""
        async with errors_to_status(context):
            engine = self._engine_for(request.model)
            engine.validator.check_token_ids(request.token_ids, "token_ids")
            return generate_pb2.DetokenizeResponse(text=await engine.tokenizer.decode(request.token_ids))

    async def Embed(  # noqa: N802
        self, request: generate_pb2.EmbedRequest, context: Context
    ) -> generate_pb2.EmbedResponse:
        """See the proto."""
        async with errors_to_status(context):
            engine = self._engine_for(request.model)
            params = PoolingParams(
                pooling=pooling_from_proto(request.pooling),
                dimensions=request.dimensions if request.HasField("dimensions") else None,
                truncate_prompt_tokens=(
                    request.truncate_prompt_tokens if request.HasField("truncate_prompt_tokens") else None
                ),
            )
            inputs = [_embed_input(index, entry) for index, entry in enumerate(request.inputs)]
            if not 0 < len(inputs) <= MAX_INPUTS:
                message = f"inputs must hold between 1 and {MAX_INPUTS} inputs, not {len(inputs)}"
                raise InvalidRequestError(message, field="inputs")
            embeddings = await engine.embed(inputs, params, RequestContext(uuid.uuid4().hex), field="inputs")
            response = generate_pb2.EmbedResponse(
                embeddings=[generate_pb2.Embedding(values=embedding.values) for embedding in embeddings]
            )
            usage = usage_of(embeddings)
            response.usage.prompt_tokens, response.usage.cached_tokens = usage.prompt_tokens, usage.cached_tokens
            return response

    def _engine_for(self, model: str) -> Engine:
        """The engine, if it serves this model; empty means whichever it serves."""
        if self._attached is None:
            raise ServiceUnavailableError("the server is starting or shutting down")
        if model:
            self._attached.validator.check_model(model)
        return self._attached


def _prompt(request: generate_pb2.GenerateRequest) -> tuple[Prompt, str]:
    """The prompt, and what the client calls it."""
    field = request.WhichOneof("prompt")
    if field == "text":
        return request.text, field
    if field == "token_ids":
        return list(request.token_ids.ids), field
    if field == "chat":
        return _chat(request.chat), field
    raise InvalidRequestError("one of text, token_ids and chat must be set", field="prompt")


def _embed_input(index: int, entry: generate_pb2.EmbedInput) -> str | list[int]:
    match entry.WhichOneof("input"):
        case "text":
            return entry.text
        case "token_ids":
            return list(entry.token_ids.ids)
    field = f"inputs[{index}]"
    raise InvalidRequestError(f"{field}: one of text and token_ids must be set", field=field)


def _chat(chat: generate_pb2.ChatPrompt) -> ChatPrompt:
    messages: list[dict[str, str]] = []
    for index, message in enumerate(chat.messages):
        if not message.role:
            field = f"chat.messages[{index}].role"
            raise InvalidRequestError(f"{field} is empty", field=field)
        entry = {"role": message.role, "content": message.content}
        messages.append({**entry, "name": message.name} if message.name else entry)
    opens_turn = chat.add_generation_prompt if chat.HasField("add_generation_prompt") else True
    return ChatPrompt(messages, opens_turn)


def _content(request: generate_pb2.GenerateRequest) -> bytes:
    """What a request id stands for: a digest of all else that the client sent."""
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


def _leaving(context: Context) -> AbortReason:
    """Why a call ends before its request does."""
    # The client's own timer fires a little before ours.
    remaining = context.time_remaining()
    if remaining is not None and remaining < 0.05:
        return scheduler_pb2.ABORT_REASON_DEADLINE_EXCEEDED
    return scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED


def _response(request_id: str, delta: GenerationDelta) -> generate_pb2.GenerateResponse:
    response = generate_pb2.GenerateResponse(
        request_id=request_id, deltas=[_completion_delta(part) for part in delta.deltas]
    )
    if (usage := delta.usage) is not None:
        response.usage.prompt_tokens = usage.prompt_tokens
        response.usage.completion_tokens = usage.completion_tokens
        response.usage.cached_tokens = usage.cached_tokens
    if delta.prompt_logprobs is not None:
        response.prompt_logprobs.extend(
            generate_pb2.TokenLogprobs() if position is None else position.to_proto()
            for position in delta.prompt_logprobs
        )
    return response


def _completion_delta(delta: CompletionDelta) -> generate_pb2.CompletionDelta:
    message = generate_pb2.CompletionDelta(index=delta.index, text=delta.text, token_ids=delta.token_ids)
    if delta.logprobs:
        message.logprobs.extend(position.to_proto() for position in delta.logprobs)
    if delta.finish_reason is not None:
        message.finish_reason = finish_reason_to_proto(delta.finish_reason)
    if isinstance(delta.stop_reason, str):
        message.stop_string = delta.stop_reason
    elif delta.stop_reason is not None:
        message.stop_token_id = delta.stop_reason
    return message
