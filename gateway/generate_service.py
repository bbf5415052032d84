"""The public gRPC service: who is asked, and what the calls have in common; the work is elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.message import Message

from quire.errors import DeadlineError, InvalidRequestError, QuireError, ServiceUnavailableError
from quire.gateway.access import Access, headers_of, tenant_of_call
from quire.gateway.engine import Engine
from quire.gateway.grpc_api.embeddings import embed
from quire.gateway.grpc_api.idempotency import RunRegistry, run_once
from quire.gateway.grpc_api.requests import chat_prompt, check_well_formed
from quire.gateway.grpc_api.runs import AbortReason, ResponseRun, start_run
from quire.gateway.metrics import RequestMetrics
from quire.gateway.origin import Origin
from quire.gateway.refusal_log import RefusalLog
from quire.gateway.tenants import Tenant
from quire.internal.v1 import scheduler_pb2
from quire.rpc import errors_to_status
from quire.v1 import generate_pb2, generate_pb2_grpc

_MAX_REQUEST_ID_LENGTH = 256
# A client's own timer fires a little before the server's: one that leaves with so little left (in seconds) ran out
# of time.
_DEADLINE_SLACK_S = 0.05

SERVICE = generate_pb2.DESCRIPTOR.services_by_name["GenerateService"].full_name

Context = grpc.aio.ServicerContext[Any, Any]


class GenerateService(generate_pb2_grpc.GenerateServiceServicer):
    """Serves while an engine is attached; before and after, every call is UNAVAILABLE.

    A deadline that passes and a client that cancels end the call's task, wherever it waits; that aborts the request.
    """

    def __init__(self, access: Access, refusals: RefusalLog) -> None:
        self._access = access
        self._refusals = refusals
        self._attached: Engine | None = None
        self._counts: RequestMetrics | None = None
        self._calls: set[Context] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._runs = RunRegistry()

    def attach(self, engine: Engine, counts: RequestMetrics) -> None:
        """Begins to serve, and to count what the calls come to."""
        self._attached, self._counts = engine, counts

    def detach(self) -> None:
        """Takes no more calls; those that run go on."""
        self._attached = None

    async def until_idle(self) -> None:
        """Waits until no call runs."""
        await self._idle.wait()

    async def Generate(  # noqa: N802
        self, request: generate_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[generate_pb2.GenerateResponse]:
        """See the proto."""
        async with self._answering("Generate", request, context):
            engine, tenant = self._begin(request, context)
            origin = _origin("Generate", context)
            _check_time_left(context)
            if len(request.request_id) > _MAX_REQUEST_ID_LENGTH:
                message = f"request_id is longer than {_MAX_REQUEST_ID_LENGTH} characters"
                raise InvalidRequestError(message, field="request_id")
            request_id = request.request_id or uuid.uuid4().hex

            async def start() -> ResponseRun:
                return await start_run(engine, request, request_id, tenant, origin)

            def leaving() -> AbortReason:
                return _leaving(context)

            if request.request_id:
                responses = self._runs.follow(tenant.name, request_id, _content(request), start, leaving)
            else:  # an id that nobody knows is never joined
                responses = run_once(start, leaving)
            async with contextlib.aclosing(responses):
                async for response in responses:
                    yield response

    async def ListModels(  # noqa: N802
        self, request: generate_pb2.ListModelsRequest, context: Context
    ) -> generate_pb2.ListModelsResponse:
        """See the proto."""
        async with self._answering("ListModels", request, context):
            engine, _ = self._begin(request, context)
            limits = engine.limits
            return generate_pb2.ListModelsResponse(
                models=[
                    generate_pb2.Model(id=name, max_model_len=limits.max_model_len, created=engine.created)
                    for name in limits.models
                ]
            )

    async def Tokenize(  # noqa: N802
        self, request: generate_pb2.TokenizeRequest, context: Context
    ) -> generate_pb2.TokenizeResponse:
        """See the proto."""
        async with self._answering("Tokenize", request, context):
            engine, _ = self._begin(request, context)
            field = request.WhichOneof("input")
            if field is None:
                raise InvalidRequestError("one of text and chat must be set", field="input")
            token_ids = await engine.validator.encode(
                request.text if field == "text" else chat_prompt(request.chat),
                field=field,
                add_special_tokens=request.add_special_tokens if request.HasField("add_special_tokens") else None,
            )
            return generate_pb2.TokenizeResponse(token_ids=token_ids, max_model_len=engine.limits.max_model_len)

    async def Detokenize(  # noqa: N802
        self, request: generate_pb2.DetokenizeRequest, context: Context
    ) -> generate_pb2.DetokenizeResponse:
        """See the proto."""
        async with self._answering("Detokenize", request, context):
            engine, _ = self._begin(request, context)
            engine.validator.check_token_ids(request.token_ids, "token_ids")
            return generate_pb2.DetokenizeResponse(text=await engine.tokenizer.decode(request.token_ids))

    async def Embed(  # noqa: N802
        self, request: generate_pb2.EmbedRequest, context: Context
    ) -> generate_pb2.EmbedResponse:
        """See the proto."""
        async with self._answering("Embed", request, context):
            engine, tenant = self._begin(request, context)
            return await embed(engine, request, tenant, _origin("Embed", context))

    @contextlib.asynccontextmanager
    async def _answering(self, method: str, request: Message, context: Context) -> AsyncIterator[None]:
        """Turns errors into the call's status, counts that, and logs what is refused."""
        status = "UNKNOWN"  # what gRPC makes of a defect
        try:
            async with errors_to_status(context):
                try:
                    yield
                except QuireError as error:
                    status = error.grpc_code
                    self._refusals.note(error, _route(method), getattr(request, "request_id", ""))
                    raise
            status = "OK"
        except (asyncio.CancelledError, GeneratorExit):
            has_time = _leaving(context) == scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED
            status = "CANCELLED" if has_time else "DEADLINE_EXCEEDED"
            raise
        finally:
            if self._counts is not None:
                self._counts.count_grpc(status)

    def _begin(self, request: Message, context: Context) -> tuple[Engine, Tenant]:
        """The engine, if it serves the request's model, and who calls; an empty name means whichever it serves."""
        tenant = tenant_of_call(self._access, context)
        check_well_formed(request)
        if self._attached is None:
            raise ServiceUnavailableError("the server is starting or shutting down")
        if model := getattr(request, "model", ""):
            self._attached.validator.check_model(model)
        self._calls.add(context)
        self._idle.clear()
        context.add_done_callback(self._end)  # type: ignore[arg-type]  # the stubs want a class of theirs
        return self._attached, tenant

    def _end(self, context: Context) -> None:
        self._calls.discard(context)
        if not self._calls:
            self._idle.set()


def _origin(method: str, context: Context) -> Origin:
    return Origin.of(_route(method), headers_of(context.invocation_metadata()))


def _route(method: str) -> str:
    """The full name of one of our methods, as gRPC writes it."""
    return f"/{SERVICE}/{method}"


def _content(request: generate_pb2.GenerateRequest) -> bytes:
    """What a request id stands for: a digest of all else that the client sent."""
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


def _check_time_left(context: Context) -> None:
    """Raises DeadlineError for a call that came too late to begin."""
    if context.time_remaining() == 0:
        raise DeadlineError("the deadline passed before the request began")


def _leaving(context: Context) -> AbortReason:
    """Why a call ends before its request does."""
    remaining = context.time_remaining()
    if remaining is not None and remaining < _DEADLINE_SLACK_S:
        return scheduler_pb2.ABORT_REASON_DEADLINE_EXCEEDED
    return scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED
