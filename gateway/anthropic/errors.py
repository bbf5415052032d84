"""Errors as Anthropic writes them: {"type": "error", "error": {type, message}, "request_id"}."""

from __future__ import annotations

from fastapi import Response
from msgspec import Struct
from starlette.types import Scope

from quire.errors import QuireError
from quire.gateway.openai.errors import shortened
from quire.gateway.openai.schemas import ERRORS as OPENAI_ERRORS
from quire.gateway.request_ids import request_id_of
from quire.gateway.sse import encode

REQUEST_ID_HEADER = "request-id"
# By our HTTP status: Anthropic's own, and the type of the error. The rest are api_errors.
_KINDS = {
    400: (400, "invalid_request_error"),
    401: (401, "authentication_error"),
    403: (403, "permission_error"),
    404: (404, "not_found_error"),
    409: (409, "invalid_request_error"),
    413: (413, "request_too_large"),
    415: (415, "invalid_request_error"),
    429: (429, "rate_limit_error"),
    503: (529, "overloaded_error"),
    504: (504, "timeout_error"),
}
# By status, for the API's description: the same conditions as everywhere.
ERRORS = {str(_KINDS.get(int(status), (int(status), ""))[0]): text for status, text in OPENAI_ERRORS.items()}


class ErrorDetail(Struct):
    """What went wrong."""

    type: str
    message: str


class ErrorFrame(Struct, tag_field="type", tag="error"):
    """An error, as a body and as an event."""

    error: ErrorDetail
    request_id: str


def error_frame(error: Exception, request_id: str) -> ErrorFrame:
    """What is not a QuireError is a defect, and its text stays inside."""
    if not isinstance(error, QuireError):
        error = QuireError("internal error")
    _, kind = _KINDS.get(error.http_status, (error.http_status, "api_error"))
    # The shape has no place for the field, which most messages name, and the others should.
    named = error.field is None or error.field in error.message
    message = error.message if named else f"{error.field}: {error.message}"
    return ErrorFrame(ErrorDetail(kind, shortened(message)), request_id)


def answer_error(error: Exception, scope: Scope) -> Response:
    """The answer to a request that failed before its first byte."""
    if not isinstance(error, QuireError):
        error = QuireError("internal error")
    status, _ = _KINDS.get(error.http_status, (error.http_status, "api_error"))
    request_id = request_id_of(scope)
    headers = {REQUEST_ID_HEADER: request_id}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return Response(encode(error_frame(error, request_id)), status, headers, media_type="application/json")
