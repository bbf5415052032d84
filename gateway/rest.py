"""The REST application: generation, models, health, version and /docs."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from quire import __version__
from quire.errors import ServiceUnavailableError
from quire.gateway.engine import Engine
from quire.gateway.openai_errors import install_error_handlers
from quire.gateway.openai_protocol import body_schemas
from quire.gateway.openai_routes import generation_routes


def create_app(engine: Engine) -> FastAPI:
    """The application for one served model."""
    app = _Application(title="Quire", version=__version__, description="OpenAI-compatible REST API of Quire.")
    install_error_handlers(app)
    app.include_router(generation_routes(engine))

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
    """Adds the bodies that routes parse by themselves to the API's description."""

    def openapi(self) -> dict[str, Any]:
        schema = super().openapi()
        schema.setdefault("components", {}).setdefault("schemas", {}).update(body_schemas())
        return schema


def _model(engine: Engine) -> dict[str, Any]:
    return {
        "id": engine.limits.model,
        "object": "model",
        "created": engine.created,
        "owned_by": "quire",
        "max_model_len": engine.limits.max_model_len,
    }
