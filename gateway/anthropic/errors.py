"""Errors as Anthropic writes them: {"type": "error", "error": {type, message}, "request_id"}."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable

from fastapi import Request, Response
from msgspec import Struct

from quire.errors import QuireError, RequestAbortedError
from quire.gateway.sse import encode

logger = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]

# By our HTTP status: Anthropic's own, and the type of the error. The rest are api_errors.
_KINDS = {
    400: (400, "invalid_request_error"),
    401: (401, "authentication_error"),
    404: (404, "not_found_error"),
    409: (409, "invalid_request_error"),
    413: (413, "request_too_large"),
    415: (415, "invalid_request_error"),
    429: (429, "rate_limit_error"),
    503: (529, "overloaded_error"),
    504: (504, "timeout_error"),
}


class ErrorDetail(Struct):
    """What went wrong."""

    type: str
    message: str


class ErrorFrame(Struct, tag_field="type", tag="error"):
    """An error, as a body and as an event."""

    error: ErrorDetail
    request_id: str | None


def error_frame(error: Exception, request_id: str | None) -> ErrorFrame:
    """What is not a QuireError is a defect, and its text stays inside."""
    if not isinstance(error, QuireError):
        error = QuireError("internal error")
    _, kind = _KINDS.get(error.http_status, (error.http_status, "api_error"))
    # The shape has no place for the field, which most messages name, and the others should.
    named = error.field is None or error.field in error.message
    return ErrorFrame(ErrorDetail(kind, error.message if named else f"{error.field}: {error.message}"), request_id)


def error_response(error: Exception, request_id: str | None = None) -> Response:
    """The answer to a request that failed before its first byte."""
    ours = error.http_status if isinstance(error, QuireError) else QuireError.http_status
    status, _ = _KINDS.get(ours, (ours, "api_error"))
    return Response(encode(error_frame(error, request_id)), status, media_type="application/json")


def in_anthropic_shape(endpoint: Endpoint) -> Endpoint:
    """An endpoint whose errors have this shape. One that nobody is left to be told of goes on."""

    @functools.wraps(endpoint)
    async def shaped(http: Request) -> Response:
        try:
            return await endpoint(http)
        except RequestAbortedError:
            raise
        except Exception as error:
            if not isinstance(error, QuireError):
                logger.exception("a request failed")
            return error_response(error)

    return shaped
