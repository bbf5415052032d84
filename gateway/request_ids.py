"""The id of a REST request: in `x-request-id`, in the answer's `id`, and in logs."""

from __future__ import annotations

import re
import uuid

from starlette.types import Scope

# Printable ASCII without spaces, so that an id can stand in headers and log lines.
REQUEST_ID_PATTERN = "^[!-~]{1,256}$"

_HEADER = b"x-request-id"
_is_request_id = re.compile(REQUEST_ID_PATTERN.encode()).fullmatch


def begin_request_id(scope: Scope) -> None:
    """Names a request as the client's header does; without one, or with one that cannot be, by a new id."""
    state = scope.setdefault("state", {})
    for name, value in scope["headers"]:
        if name == _HEADER and _is_request_id(value):
            state["is_named_by_header"] = True
            state["request_id"] = value.decode("ascii")
            return
    state["request_id"] = uuid.uuid4().hex


def request_id_of(scope: Scope, given: str | None = None) -> str:
    """The id of a request; one that its body has `given` is taken unless a header gave one."""
    state = scope["state"]
    if given is not None and "is_named_by_header" not in state:
        state["request_id"] = given
    request_id: str = state["request_id"]
    return request_id
