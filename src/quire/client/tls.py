"""TLS of clients: whom they trust, and the certificate they show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import grpc

from quire.errors import InvalidRequestError


class TlsArguments(TypedDict, total=False):
    """What clients take; any of these turns TLS on, as does an address that begins with https://."""

    # PEM of the authorities that may have signed the server's certificate; default: those that gRPC knows.
    ssl_ca_certs: str | Path | None
    # The client's own certificate and key.
    ssl_certfile: str | Path | None
    ssl_keyfile: str | Path | None


@dataclass(frozen=True, slots=True)
class Target:
    """Where a channel leads."""

    address: str
    credentials: grpc.ChannelCredentials | None

    @classmethod
    def of(cls, address: str, tls: TlsArguments) -> Target:
        """Raises InvalidRequestError naming the argument that is wrong."""
        given = {name: path for name, path in tls.items() if path is not None}
        if ("ssl_certfile" in given) != ("ssl_keyfile" in given):
            missing = "ssl_keyfile" if "ssl_certfile" in given else "ssl_certfile"
            raise InvalidRequestError(f"{missing} is missing: a certificate and its key go together", field=missing)
        is_https = address.startswith("https://")
        address = address.removeprefix("https://").removeprefix("http://")
        if not given and not is_https:
            return cls(address, None)
        authority, certificate, key = (
            _read(name, given.get(name)) for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
        )
        return cls(address, grpc.ssl_channel_credentials(authority, key, certificate))


def _read(name: str, path: object) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(str(path)).read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"{name}: cannot read {path}: {error.strerror}", field=name) from error
