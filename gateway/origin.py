"""Where a request came from: what the log and the traces say of it besides its tenant."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from starlette.types import Scope

# W3C Trace Context: no valid `traceparent` is longer (version 00 has 55), and of a longer `tracestate` parts may go.
_MAX_TRACE_PARENT: Final = 128
_MAX_TRACE_STATE: Final = 512


@dataclass(slots=True)
class Origin:
    """One call of a client's. All of its prompts share it."""

    # A path of the REST API, or a full name of a gRPC method.
    route: str = ""
    # The caller's W3C trace context as it came (`traceparent`, `tracestate`), or empty.
    trace_parent: str = ""
    trace_state: str = ""
    _trace_id: int = 0

    @classmethod
    def of(cls, route: str, headers: Mapping[bytes, bytes]) -> Origin:
        """Of a call with these headers, whose names are in lower case."""
        parent, state = headers.get(b"traceparent", b""), headers.get(b"tracestate", b"")
        if not parent or len(parent) > _MAX_TRACE_PARENT:
            return cls(route)
        return cls(route, parent.decode("latin-1"), state.decode("latin-1") if len(state) <= _MAX_TRACE_STATE else "")

    @property
    def own_trace_id(self) -> int:
        """The trace of a call whose caller has begun none; the same for all prompts."""
        self._trace_id = self._trace_id or secrets.randbits(128) or 1
        return self._trace_id


def set_origin(scope: Scope, origin: Origin) -> None:
    """Notes where a REST request came from."""
    scope["state"]["origin"] = origin


def origin_of(scope: Scope) -> Origin:
    """Where a REST request came from."""
    origin: Origin = scope["state"]["origin"]
    return origin
