"""/docs: Swagger UI over /openapi.json, from files of a package, so that it works without the internet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

_FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")


def docs_routes() -> APIRouter:
    """The page and its files."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    async def show_docs(http: Request) -> HTMLResponse:
        root = http.scope.get("root_path", "")
        script, style, icon = (f"{root}/docs/{name}" for name in _FILES)
        return get_swagger_ui_html(
            openapi_url=f"{root}/openapi.json",
            title="Quire",
            swagger_js_url=script,
            swagger_css_url=style,
            swagger_favicon_url=icon,
        )

    for name in _FILES:
        router.add_api_route(f"/docs/{name}", _file_sender(name))
    return router


def _file_sender(name: str) -> Callable[[], Awaitable[FileResponse]]:
    async def send_file() -> FileResponse:
        # Imported when the page is first looked at.
        import fastapi_offline

        return FileResponse(Path(fastapi_offline.__file__).parent / "static" / name)

    return send_file
