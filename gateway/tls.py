"""TLS at the edge: the gateway's certificate, and the names in its clients' certificates."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

import grpc

from quire.certificates import CertificateFiles, ServerCertificates
from quire.config import TlsOptions
from quire.errors import StartupError

logger = logging.getLogger(__name__)

# Where the REST server puts the name for the application (an ASGI scope).
_SCOPE_KEY = "quire.peer_name"


class Transport(Protocol):
    """What is asked of a connection."""

    def get_extra_info(self, name: str) -> Any: ...


def server_certificates(options: TlsOptions) -> ServerCertificates | None:
    """The gateway's certificate; None without one. Raises StartupError naming the flag that is wrong or missing."""
    if options.ssl_certfile is None:
        for name in ("ssl_keyfile", "ssl_ca_certs"):
            if getattr(options, name) is not None:
                raise StartupError(f"--{name.replace('_', '-')} needs --ssl-certfile", field=name)
    elif options.ssl_ca_certs is None and options.ssl_cert_reqs != "none":
        message = f"--ssl-cert-reqs {options.ssl_cert_reqs} needs --ssl-ca-certs, which says whose certificates count"
        raise StartupError(message, field="ssl_cert_reqs")
    else:
        if options.ssl_cert_reqs == "optional":
            logger.warning(
                "--ssl-cert-reqs optional: on gRPC, which cannot offer, no client is asked for a certificate"
            )
        files = CertificateFiles(options.ssl_certfile, options.ssl_keyfile, options.ssl_ca_certs)
        return ServerCertificates(files, options.ssl_cert_reqs)
    if options.ssl_cert_reqs != "none":
        raise StartupError("--ssl-cert-reqs needs --ssl-certfile", field="ssl_cert_reqs")
    return None


def name_peer(scope: dict[str, Any], transport: Transport) -> None:
    """Puts the common name of the client's certificate, which the handshake has checked, into an ASGI scope."""
    connection = transport.get_extra_info("ssl_object")
    certificate = connection.getpeercert() if connection is not None else None
    if certificate:
        names = [value for part in certificate["subject"] for kind, value in part if kind == "commonName"]
        scope[_SCOPE_KEY] = names[0] if names else ""


def peer_name(scope: Mapping[str, Any]) -> str | None:
    """The common name of the client's certificate; None for a client without one."""
    return scope.get(_SCOPE_KEY)


def grpc_peer_name(context: grpc.aio.ServicerContext[Any, Any]) -> str | None:
    """The same for a gRPC call."""
    names = context.auth_context().get("x509_common_name")
    return None if names is None else next(iter(names)).decode("utf-8", "replace")
