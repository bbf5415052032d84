"""Errors as OpenAI writes them: {"error": {message, type, param, code}}."""

from __future__ import annotations

import logging

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from quire.errors import InvalidRequestError, QuireError

logger = logging.getLogger(__name__)


def error_body(message: str, kind: str, param: str | None, code: str | None) -> bytes:
    """The JSON of an error."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def encode_error(error: Exception) -> bytes:
    """The JSON of an exception; what is not a QuireError is a defect, and its text stays inside."""
    if not isinstance(error, QuireError):
        error = QuireError("internal error")
    return error_body(error.message, error.type, error.field, error.code)


def error_response(error: Exception) -> Response:
    """The answer to a request that failed before its first byte."""
    status = error.http_status if isinstance(error, QuireError) else QuireError.http_status
    return Response(encode_error(error), status, media_type="application/json")


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
        message = f"{error.detail}: {request.method} {request.url.path}"
        body = error_body(message, InvalidRequestError.type, None, code)
        return Response(body, error.status_code, error.headers, media_type="application/json")

    app.add_exception_handler(QuireError, on_quire_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_defect)
