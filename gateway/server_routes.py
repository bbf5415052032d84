"""What monitors and operators ask a server: is it well, and which is it?"""

from __future__ import annotations

from fastapi import APIRouter

from quire import __version__
from quire.errors import ServiceUnavailableError
from quire.gateway.engine import Engine


def server_routes(engine: Engine) -> APIRouter:
    """Health and version."""
    router = APIRouter(tags=["server"])

    @router.get("/health", responses={"503": {"description": "The scheduler is not connected."}})
    async def health() -> dict[str, str]:
        """200 while the scheduler is connected, else 503."""
        if not engine.is_ready:
            raise ServiceUnavailableError("the scheduler is not connected")
        return {"status": "ok"}

    # SageMaker asks this way.
    router.add_api_route("/ping", health, methods=["GET", "POST"], operation_id="ping", include_in_schema=False)

    @router.get("/version")
    async def show_version() -> dict[str, str]:
        """The server's version."""
        return {"version": __version__}

    return router
