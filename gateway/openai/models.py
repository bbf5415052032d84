"""/v1/models: the model that is served, under each of its names."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request, Response
from msgspec import Struct

from quire.gateway.engine import Engine
from quire.gateway.openai.frames import encode
from quire.gateway.openai.schemas import describe_answer


class ModelPermission(Struct):
    """What older clients expect beside a model."""

    id: str
    created: int
    object: str = "model_permission"
    allow_create_engine: bool = False
    allow_sampling: bool = True
    allow_logprobs: bool = True
    allow_search_indices: bool = False
    allow_view: bool = True
    allow_fine_tuning: bool = False
    organization: str = "*"
    group: str | None = None
    is_blocking: bool = False


class ModelCard(Struct):
    """A name of the served model."""

    id: str
    created: int
    # Where its weights come from.
    root: str
    max_model_len: int
    permission: Sequence[ModelPermission]
    object: str = "model"
    owned_by: str = "quire"
    # The model that an adapter adapts.
    parent: str | None = None


class ModelList(Struct):
    """The answer of /v1/models."""

    data: Sequence[ModelCard]
    object: str = "list"


ANSWERS = (ModelCard, ModelList)

_NAME_PARAMETER = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}


def model_routes(engine: Engine) -> APIRouter:
    """Both endpoints."""
    router = APIRouter(tags=["models"])

    @router.get("/v1/models", **describe_answer(ModelList))
    async def list_models() -> Response:
        """The model that is served, under each of its names."""
        return _json(ModelList([_card(engine, name) for name in engine.limits.models]))

    @router.get("/v1/models/{model:path}", **describe_answer(ModelCard, [_NAME_PARAMETER], "404"))
    async def retrieve_model(http: Request) -> Response:
        """One of its names."""
        name: str = http.path_params["model"]
        if not name:  # a URL that ends with a slash
            return await list_models()
        engine.validator.check_model(name)
        return _json(_card(engine, name))

    return router


def _card(engine: Engine, name: str) -> ModelCard:
    permission = ModelPermission(f"modelperm-{name}", engine.created)
    return ModelCard(name, engine.created, engine.limits.root, engine.limits.max_model_len, [permission])


def _json(answer: Struct) -> Response:
    return Response(encode(answer), media_type="application/json")
