"""The live page at `/`: a playground and a view of the server, from the files of the folder `page`.

The page needs no key, since it says nothing of the server; what it asks for does. Nothing in it comes from elsewhere,
and its policy (https://www.w3.org/TR/CSP3/) lets a browser load, run and ask only what this server serves.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

FOLDER = Path(__file__).parent / "page"
# Below it lie the page's files.
FILES_PATH = "/page/"

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Text of a model cannot become HTML, not even by a mistake of ours.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Kept, but asked for again each time, which costs an answer of 304: a new server has new files at once.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def page_routes() -> APIRouter:
    """The page and its files."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def show_page(http: Request) -> Response:
        return _answer(http, "index.html")

    @router.get(FILES_PATH + "{name:path}")
    async def send_file(http: Request) -> Response:
        return _answer(http, http.path_params["name"])

    return router


@cache
def page_files() -> dict[str, _File]:
    """Each file of the page, by its path below the folder. Read when the page is first looked at."""
    files = (path for path in sorted(FOLDER.rglob("*")) if path.suffix in _TYPES)
    return {path.relative_to(FOLDER).as_posix(): _read(path) for path in files}


def _read(path: Path) -> _File:
    content = path.read_bytes()
    return _File(content, _TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _answer(http: Request, name: str) -> Response:
    """The file, or 304 to whoever has it already."""
    file = page_files().get(name)
    if file is None:
        raise HTTPException(404, "Not Found")
    headers = {**_HEADERS, "ETag": file.etag}
    known = http.headers.get("if-none-match", "")
    # Weak comparison (RFC 9110, 13.1.2): a proxy that compresses makes our tag a weak one.
    if file.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(None, 304, headers)
    return Response(file.content, 200, headers, media_type=file.media_type)
