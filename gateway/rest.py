"""The REST application: generation, models, health, version and /docs."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from quire import __version__
from quire.errors import QuireError, ServiceUnavailableError
from quire.gateway.anthropic.routes import BODIES as ANTHROPIC_BODIES
from quire.gateway.anthropic.routes import anthropic_routes
from quire.gateway.engine import Engine
from quire.gateway.openai.errors import error_response, install_error_handlers
from quire.gateway.openai.protocol import body_schemas
from quire.gateway.openai.responses.routes import BODIES as RESPONSES_BODIES
from quire.gateway.openai.responses.routes import responses_routes
from quire.gateway.openai.routes import BODIES, generation_routes

logger = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(engine: Engine) -> FastAPI:
    """The application for one served model."""
    app = _Application(title="Quire", version=__version__, description="OpenAI-compatible REST API of Quire.")
    install_error_handlers(app)
    routers = [generation_routes(engine), responses_routes(engine), anthropic_routes(engine)]
    for router in routers:
        app.include_router(router)
    routes = [route for router in routers for route in router.routes]
    app.short_ways = {route.path: route.endpoint for route in routes if isinstance(route, APIRoute)}

    @app.get("/v1/models", tags=["models"])
    async def list_models() -> dict[str, Any]:
        """The models that are served."""
        return {"object": "list", "data": [_model(engine)]}

    @app.get("/v1/models/{model:path}", tags=["models"])
    async def retrieve_model(model: str) -> dict[str, Any]:
        """One model."""
        engine.validator.check_model(model)
        return _model(engine)

    @app.get("/health", tags=["server"])
    async def health() -> dict[str, str]:
        """200 while the scheduler is connected, else 503."""
        if not engine.is_ready:
            raise ServiceUnavailableError("the scheduler is not connected")
        return {"status": "ok"}

    @app.get("/version", tags=["server"])
    async def show_version() -> dict[str, str]:
        """The server's version."""
        return {"version": __version__}

    return app


class _Application(FastAPI):
    """FastAPI with a short way to the routes of generation, whose bodies it adds to the API's description.

    FastAPI's own way to an endpoint goes through a dozen coroutines (middleware, exit stacks, dependencies). These
    routes need none of it, and each of the coroutines would be resumed for every token of a stream.
    """

    # By path; all are POST.
    short_ways: Mapping[str, Endpoint] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request (ASGI)."""
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        endpoint = self.short_ways.get(scope["path"]) if is_post else None
        if endpoint is None:
            await super().__call__(scope, receive, send)
            return
        try:
            response = await endpoint(Request(scope, receive))
        except Exception as error:
            if not isinstance(error, QuireError):
                logger.exception("a request failed")
            response = error_response(error)
        await response(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        schema = super().openapi()
        bodies = body_schemas((*BODIES, *RESPONSES_BODIES, *ANTHROPIC_BODIES))
        schema.setdefault("components", {}).setdefault("schemas", {}).update(bodies)
        return schema


def _model(engine: Engine) -> dict[str, Any]:
    return {
        "id": engine.limits.model,
        "object": "model",
        "created": engine.created,
        "owned_by": "quire",
        "max_model_len": engine.limits.max_model_len,
    }
