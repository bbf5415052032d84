"""Errors as OpenAI writes them: {"error": {message, type, param, code}}."""

from __future__ import annotations

import logging

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from msgspec import Struct
from starlette.exceptions import HTTPException

from quire.errors import AuthenticationError, InvalidRequestError, QuireError

logger = logging.getLogger(__name__)


# What a client sent comes back in a message or a param at most so long, in characters.
_MOST_MESSAGE, _MOST_PARAM = 2000, 200


class ErrorObject(Struct):
    """What went wrong."""

    message: str
    type: str
    # The request field at fault.
    param: str | None
    code: str | None


class ErrorBody(Struct):
    """The body of every answer that is not 2xx."""

    error: ErrorObject


def error_body(message: str, kind: str, param: str | None, code: str | None) -> bytes:
    """The JSON of an error."""
    param = None if param is None else shortened(param, _MOST_PARAM)
    return msgspec.json.encode(ErrorBody(ErrorObject(shortened(message), kind, param, code)))


def shortened(text: str, most: int = _MOST_MESSAGE) -> str:
    """A text that may hold what a client sent, as it can be sent back."""
    # A lone surrogate, which an escape in JSON can stand for, cannot be sent back.
    text = text.encode(errors="replace").decode()
    return text if len(text) <= most else f"{text[:most]}…"


def encode_error(error: Exception) -> bytes:
    """The JSON of an exception; what is not a QuireError is a defect, and its text stays inside."""
    if not isinstance(error, QuireError):
        error = QuireError("internal error")
    return error_body(error.message, error.type, error.field, error.code)


def error_response(error: Exception) -> Response:
    """The answer to a request that failed before its first byte."""
    if not isinstance(error, QuireError):
        error = QuireError("internal error")
    headers: dict[str, str] = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, AuthenticationError):
        headers["WWW-Authenticate"] = "Bearer"
    return Response(encode_error(error), error.http_status, headers, media_type="application/json")


def install_error_handlers(app: FastAPI) -> None:
    """Gives every error of the app, the framework's own included, OpenAI's shape."""

    async def on_quire_error(request: Request, error: Exception) -> Response:
        return error_response(error)

    async def on_defect(request: Request, error: Exception) -> Response:
        return error_response(error)  # the framework logs it with its traceback

    async def on_invalid(request: Request, error: Exception) -> Response:
        return error_response(InvalidRequestError(str(error)))

    async def on_http_error(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        message = f"{error.detail}: {request.method} {shortened(request.url.path, _MOST_PARAM)}"
        body = error_body(message, InvalidRequestError.type, None, code)
        return Response(body, error.status_code, error.headers, media_type="application/json")

    app.add_exception_handler(QuireError, on_quire_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_defect)
