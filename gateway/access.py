"""Who may call: API keys, on REST and on gRPC."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import grpc

from quire import rpc
from quire.errors import AuthenticationError

# On gRPC; health checks and reflection are open, as /health and /openapi.json are.
_GUARDED_PACKAGE = "/quire.v1."


class ApiKeys:
    """The keys that clients may send. Without any, everybody is admitted."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Raises AuthenticationError unless `authorization: Bearer …` (or Anthropic's `x-api-key`) has one of them."""
        if not self._digests:
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            given = headers.get(b"x-api-key", b"")
        if not given:
            raise AuthenticationError("no API key was sent; send it as `Authorization: Bearer KEY`")
        digest = _digest(given.strip())
        # Every key is compared, in a time that does not depend on where they differ.
        if sum(hmac.compare_digest(digest, known) for known in self._digests) == 0:
            raise AuthenticationError("the API key is not one of this server's")


class KeyInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls to the public gRPC API that carry no key, before their messages are read."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See grpc.aio."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(_GUARDED_PACKAGE):
            return handler
        metadata = handler_call_details.invocation_metadata or ()
        try:
            self._keys.check({_to_bytes(name): _to_bytes(value) for name, value in metadata})
        except AuthenticationError as error:
            return _refusal(handler, error)
        return handler


def _refusal(handler: grpc.RpcMethodHandler[Any, Any], error: AuthenticationError) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler of the same kind that only gives the error."""

    async def refuse(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await rpc.abort(context, error)

    make = grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
    return make(refuse, handler.request_deserializer, handler.response_serializer)


def _to_bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
