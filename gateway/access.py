"""Who may call, and as which tenant: API keys and client certificates, on REST and on gRPC."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import grpc

from quire import rpc
from quire.config import AccessOptions
from quire.errors import AuthenticationError, StartupError
from quire.gateway.refusal_log import RefusalLog
from quire.gateway.tenants import ANONYMOUS, DEFAULT_NAME, KeyFile, Tenant, read_key_file
from quire.gateway.tls import grpc_peer_name

logger = logging.getLogger(__name__)

# On gRPC; health checks and reflection are open, as /health and /openapi.json are.
_GUARDED_PACKAGE = "/quire.v1."
_POLL_S: Final = 1.0

Context = grpc.aio.ServicerContext[Any, Any]


class Access:
    """Finds the tenant of whoever calls. Without keys everybody is admitted, as whom their certificate says if any."""

    def __init__(self, options: AccessOptions) -> None:
        """Raises StartupError for a key file that is not right."""
        self._own_keys = options.api_key
        self._path = options.api_keys
        # Keys are looked up by a digest that nobody else can compute, so that the time of it tells nothing of a key.
        self._secret = secrets.token_bytes(32)
        self._tenants: Mapping[str, Tenant] = {}
        self._by_mark: dict[bytes, tuple[bytes, Tenant]] = {}
        self._stamp = None if self._path is None else _stamp(self._path)
        self._install(KeyFile() if self._path is None else read_key_file(self._path))

    @property
    def needs_key(self) -> bool:
        """Whether callers must say who they are."""
        return self._path is not None or bool(self._own_keys)

    def tenant(self, headers: Mapping[bytes, bytes], certificate_name: str | None = None) -> Tenant:
        """The tenant of a call with these headers, whose client may have shown a certificate with this common name.

        A key decides (`authorization: Bearer …`, or Anthropic's `x-api-key`), even beside a certificate: a proxy's
        certificate does not stand for its users. Raises AuthenticationError.
        """
        if not self.needs_key:
            return self.tenant_of_certificate(certificate_name) or ANONYMOUS
        if key := _key(headers):
            digest = hashlib.sha256(key).digest()
            known, tenant = self._by_mark.get(self._mark(digest), (b"", ANONYMOUS))
            if hmac.compare_digest(digest, known):
                return tenant
            raise AuthenticationError("the API key is not one of this server's")
        if (tenant_by_name := self.tenant_of_certificate(certificate_name)) is not None:
            return tenant_by_name
        raise AuthenticationError("no API key was sent; send it as `Authorization: Bearer KEY`")

    def known_tenant(self, headers: Mapping[bytes, bytes], certificate_name: str | None = None) -> Tenant | None:
        """The same where nobody has to say who they are; None for whoever would have to, and has not.

        Raises AuthenticationError for a wrong key.
        """
        is_nameless = not _key(headers) and self.tenant_of_certificate(certificate_name) is None
        return None if self.needs_key and is_nameless else self.tenant(headers, certificate_name)

    def tenant_of_certificate(self, name: str | None) -> Tenant | None:
        """Whom a client certificate's common name stands for: a tenant of the key file, or without one itself."""
        if not name:
            return None
        known = self._tenants.get(name)
        # Without keys everybody may see everything.
        return Tenant(name, is_operator=True) if known is None and not self.needs_key else known

    def reload(self) -> None:
        """Reads the key file again if it has changed. One that is not right changes nothing and is logged."""
        if self._path is None or (stamp := _stamp(self._path)) == self._stamp:
            return
        self._stamp = stamp
        try:
            content = read_key_file(self._path)
        except StartupError as error:
            logger.error("the API keys stay as they were: %s", error.message)
            return
        self._install(content)
        logger.info("read %d API keys of %d tenants", len(content.by_digest), len(content.by_name))

    async def watch(self) -> None:
        """Calls `reload` every second, for ever."""
        while True:
            await asyncio.sleep(_POLL_S)
            self.reload()

    def _install(self, content: KeyFile) -> None:
        # Whoever has a key of the command line runs the server, unless the file says more of them.
        default = content.by_name.get(DEFAULT_NAME, Tenant(DEFAULT_NAME, is_operator=True))
        own = {hashlib.sha256(key.encode()).digest(): default for key in self._own_keys}
        self._tenants = content.by_name
        self._by_mark = {
            self._mark(digest): (digest, tenant) for digest, tenant in {**own, **content.by_digest}.items()
        }

    def _mark(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._secret).digest()


class KeyInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls to the public gRPC API that carry a wrong key, or none, before their messages are read.

    It does not see certificates: a call without a key is left to `tenant_of_call` where there may be one.
    """

    def __init__(self, access: Access, refusals: RefusalLog, *, with_certificates: bool) -> None:
        self._access = access
        self._refusals = refusals
        self._with_certificates = with_certificates

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See grpc.aio."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(_GUARDED_PACKAGE):
            return handler
        headers = headers_of(handler_call_details.invocation_metadata)
        if self._with_certificates and not _key(headers):
            return handler
        try:
            self._access.tenant(headers)
        except AuthenticationError as error:
            self._refusals.note(error, handler_call_details.method)
            return _refusal(handler, error)
        return handler


def tenant_of_call(access: Access, context: Context) -> Tenant:
    """The tenant of a gRPC call. Raises AuthenticationError."""
    return access.tenant(headers_of(context.invocation_metadata()), grpc_peer_name(context))


def _refusal(handler: grpc.RpcMethodHandler[Any, Any], error: AuthenticationError) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler of the same kind that only gives the error."""

    async def refuse(request: Any, context: Context) -> None:
        await rpc.abort(context, error)

    make = grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
    return make(refuse, handler.request_deserializer, handler.response_serializer)


def _key(headers: Mapping[bytes, bytes]) -> bytes:
    """The key that was sent; empty if there is none."""
    scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
    return (given if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")).strip()


def headers_of(metadata: Any) -> dict[bytes, bytes]:
    """The metadata of a gRPC call as REST has them; of several of one name the last."""
    return {_to_bytes(name): _to_bytes(value) for name, value in metadata or ()}


def _to_bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written or replaced; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
