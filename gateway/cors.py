"""Cross-origin requests: pages of which origins may call (https://fetch.spec.whatwg.org/#http-cors-protocol)."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import Response
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from quire.config import AccessOptions

RawHeaders = list[tuple[bytes, bytes]]

# What pages may read of an answer besides its body.
_EXPOSED = ("x-request-id", "retry-after")


class CorsPolicy:
    """Starlette's policy, without its middleware, which would handle every chunk of a stream."""

    def __init__(self, options: AccessOptions) -> None:
        self._policy = CORSMiddleware(
            _no_app,
            allow_origins=options.allowed_origins,
            allow_methods=options.allowed_methods,
            allow_headers=options.allowed_headers,
            allow_credentials=options.allow_credentials,
            expose_headers=_EXPOSED,
        )

    def preflight(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Response | None:
        """The answer to a browser's question before its request; None if it is no such question."""
        is_question = scope["method"] == "OPTIONS" and b"origin" in headers
        if not is_question or b"access-control-request-method" not in headers:
            return None
        return self._policy.preflight_response(Headers(scope=scope))

    def headers(self, headers: Mapping[bytes, bytes]) -> RawHeaders:
        """What is added to an answer; nothing where the request is no page's of another origin."""
        origin = headers.get(b"origin")
        if origin is None:
            return []
        policy = self._policy
        if not policy.is_allowed_origin(origin.decode("latin-1")):
            return [(b"vary", b"Origin")]
        added = {name.lower().encode(): value.encode() for name, value in policy.simple_headers.items()}
        if policy.preflight_explicit_allow_origin:
            added |= {b"access-control-allow-origin": origin, b"vary": b"Origin"}
        return list(added.items())


async def _no_app(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("unreachable: only the policy is used")
