"""The REST application: who may call, where a request goes, and what every answer carries."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message, Receive, Scope, Send

from quire import __version__
from quire.config import AccessOptions, ObservationOptions
from quire.errors import QuireError
from quire.gateway.access import Access
from quire.gateway.anthropic import errors as anthropic_errors
from quire.gateway.anthropic import routes as anthropic_routes
from quire.gateway.api_docs import docs_routes
from quire.gateway.cors import CorsPolicy, RawHeaders
from quire.gateway.engine import Engine
from quire.gateway.live_page import FILES_PATH, page_routes
from quire.gateway.metrics import RequestMetrics
from quire.gateway.metrics_report import MetricsReporter
from quire.gateway.metrics_routes import metrics_routes
from quire.gateway.monitor_routes import monitor_routes
from quire.gateway.openai import embeddings, models, routes, similarity, tokenization
from quire.gateway.openai.errors import error_response, install_error_handlers
from quire.gateway.openai.responses import routes as responses_routes
from quire.gateway.openai.schemas import add_components
from quire.gateway.origin import Origin, set_origin
from quire.gateway.refusal_log import RefusalLog
from quire.gateway.request_ids import begin_request_id, request_id_of
from quire.gateway.server_routes import server_routes
from quire.gateway.tenants import ANONYMOUS, set_tenant, tenant_of
from quire.gateway.tls import peer_name

logger = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]
# How an API writes the error of a request, which the scope names.
ErrorWriter = Callable[[Exception, Scope], Response]

# What needs no API key: it says nothing of users.
_OPEN_PATHS = frozenset({"/", "/health", "/ping", "/version", "/metrics", "/docs", "/openapi.json"})
# Below these lie the pages' files.
_OPEN_FOLDERS = ("/docs/", FILES_PATH)
# Routes that take a body and need no executor: an overload is nothing to them.
_GATEWAY_ONLY = frozenset({"/tokenize", "/detokenize", "/v1/messages/count_tokens"})
# Modules with routes that take a body.
_PARTS = (routes, responses_routes, embeddings, similarity, tokenization, anthropic_routes)


def create_app(
    engine: Engine,
    options: AccessOptions,
    access: Access,
    refusals: RefusalLog,
    metrics: MetricsReporter,
    observation: ObservationOptions,
) -> FastAPI:
    """The application for one served model."""
    app = _Application(engine, options, access, refusals, metrics.counts)
    install_error_handlers(app)
    for router in (
        routes.generation_routes(engine),
        responses_routes.responses_routes(engine),
        embeddings.embedding_routes(engine),
        similarity.similarity_routes(engine),
        tokenization.tokenization_routes(engine),
    ):
        app.add_short_ways(router)
    app.add_short_ways(anthropic_routes.anthropic_routes(engine), anthropic_errors.answer_error)
    own_metrics = metrics_routes(engine, access, metrics, observation.metrics_alias)
    served = (models.model_routes(engine), server_routes(engine), own_metrics, monitor_routes(engine), docs_routes())
    for router in served:
        app.include_router(router)
    if observation.live_page:
        app.include_router(page_routes())
    return app


def _answer_error(error: Exception, scope: Scope) -> Response:
    """OpenAI's way."""
    return error_response(error)


class _Application(FastAPI):
    """FastAPI with a short way to the routes that take a body.

    FastAPI's own way to an endpoint goes through a dozen coroutines (middleware, exit stacks, dependencies). These
    routes need none of it, and each of the coroutines would be resumed for every token of a stream. So what other
    applications leave to middleware is done here: request ids, API keys, CORS, the root path.
    """

    def __init__(
        self, engine: Engine, options: AccessOptions, access: Access, refusals: RefusalLog, counts: RequestMetrics
    ) -> None:
        description = "OpenAI-compatible REST API of Quire."
        super().__init__(title="Quire", version=__version__, description=description, docs_url=None, redoc_url=None)
        self._engine = engine
        self._access = access
        self._refusals = refusals
        self._counts = counts
        self._cors = CorsPolicy(options)
        self._root_path = options.root_path
        # By path; all are POST.
        self._short_ways: dict[str, Endpoint] = {}
        self._error_writers: dict[str, ErrorWriter] = {}

    def add_short_ways(self, router: APIRouter, answer_error: ErrorWriter = _answer_error) -> None:
        """Adds routes whose endpoints take a Request and give a Response, and nothing else of FastAPI's."""
        self.include_router(router)
        endpoints = {route.path: route.endpoint for route in router.routes if isinstance(route, APIRoute)}
        self._short_ways |= endpoints
        self._error_writers |= dict.fromkeys(endpoints, answer_error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request (ASGI)."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        begin_request_id(scope)
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        path = self._local_path(scope)
        added = self._cors.headers(headers)
        endpoint = self._short_ways.get(path) if scope["method"] == "POST" else None
        if (response := self._cors.preflight(scope, headers)) is not None:
            added = []  # it has them already
        elif (response := self._refusal(scope, path, headers)) is not None:
            pass
        elif endpoint is not None:
            set_origin(scope, Origin.of(path, headers))
            response = await self._call(endpoint, Request(scope, receive), path)
        else:
            # A server leaves out the body of an answer to HEAD; one that would not end is not begun.
            scope["state"]["is_head"] = is_head = scope["method"] == "HEAD"
            get = {**scope, "method": "GET"} if is_head else scope
            await super().__call__(get, receive, self._adding(send, [*added, _id_header(scope)]))
            return
        self._counts.count_http(response.status_code)
        response.raw_headers += [*added, _id_header(scope)]
        await response(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """The description of the API, with the schemas of bodies and answers."""
        if self.openapi_schema is None:
            document = super().openapi()
            add_components(
                document,
                [body for part in _PARTS for body in part.BODIES],
                [*(answer for part in _PARTS for answer in part.ANSWERS), *models.ANSWERS],
            )
            if self._access.needs_key:
                _require_keys(document)
        assert self.openapi_schema is not None
        return self.openapi_schema

    def _refusal(self, scope: Scope, path: str, headers: Mapping[bytes, bytes]) -> Response | None:
        """The answer to whoever has no key, or comes in an overload, before the body is read; notes others' tenant."""
        if path in _OPEN_PATHS or path.startswith(_OPEN_FOLDERS):
            return None
        try:
            set_tenant(scope, self._access.tenant(headers, peer_name(scope)))
            if path in self._short_ways and path not in _GATEWAY_ONLY and scope["method"] == "POST":
                self._engine.check_load(tenant_of(scope))
        except QuireError as error:
            return self._refuse(error, scope, path)
        return None

    async def _call(self, endpoint: Endpoint, request: Request, path: str) -> Response:
        try:
            return await endpoint(request)
        except QuireError as error:
            return self._refuse(error, request.scope, path)
        except Exception as error:
            logger.exception("request %s failed", request_id_of(request.scope))
            return self._error_writers[path](error, request.scope)

    def _refuse(self, error: QuireError, scope: Scope, path: str) -> Response:
        if path in self._short_ways:
            tenant = scope["state"].get("tenant", ANONYMOUS)
            self._refusals.note(error, path, request_id_of(scope), tenant.name)
        return self._error_writers.get(path, _answer_error)(error, scope)

    def _adding(self, send: Send, added: RawHeaders) -> Send:
        """`send`, with more headers on the answer, which is counted."""

        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._counts.count_http(message["status"])
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        return send_more

    def _local_path(self, scope: Scope) -> str:
        """The path below the root path, which a proxy may have taken off or not; the scope then has both."""
        root, path = self._root_path, scope["path"]
        local: str = path.removeprefix(root) if path.startswith(f"{root}/") else path
        if root:
            scope["root_path"], scope["path"] = root, root + local
        return local


def _id_header(scope: Scope) -> tuple[bytes, bytes]:
    return b"x-request-id", request_id_of(scope).encode()


def _require_keys(document: dict[str, Any]) -> None:
    """Tells that all but the open paths need a key."""
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, methods in document["paths"].items():
        if path not in _OPEN_PATHS:
            for operation in methods.values():
                operation["security"] = [{"key": []}]
