"""What monitors and operators ask a server: is it well, and which is it?"""

from __future__ import annotations

from fastapi import APIRouter

from quire import __version__
from quire.errors import ServiceUnavailableError
from quire.gateway.engine import Engine


def server_routes(engine: Engine) -> APIRouter:
    """Health and version."""
    router = APIRouter(tags=["server"])

    @router.get("/health", responses={"503": {"description": "Requests would not get ahead."}})
    async def health() -> dict[str, str]:
        """200 while requests get ahead: the scheduler is connected, an executor lives, outputs come. Else 503."""
        if (reason := engine.readiness.reason) is not None:
            raise ServiceUnavailableError(reason)
        return {"status": "ok"}

    # SageMaker asks this way.
    router.add_api_route("/ping", health, methods=["GET", "POST"], operation_id="ping", include_in_schema=False)

    @router.get("/version")
    async def show_version() -> dict[str, str]:
        """The server's version."""
        return {"version": __version__}

    return router
