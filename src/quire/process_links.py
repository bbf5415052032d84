"""How processes of ours reach each other: Unix sockets on one host, mutual TLS between hosts.

A process that may submit requests, read outputs or attach the KV pool is trusted with everybody's prompts. On one host
the sockets' modes keep others out; over TCP only certificates do. So an address off this host's loopback needs a
certificate, a key and the authority that has signed those of all our processes (`--internal-tls-…`), or the word of
the operator that the network itself is closed (`--allow-insecure-internal`).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

import grpc

from quire.certificates import CertificateFiles, ServerCertificates
from quire.config import InternalTlsOptions
from quire.errors import StartupError

_FLAGS = ("internal_tls_cert", "internal_tls_key", "internal_tls_ca")


@dataclass(frozen=True, slots=True)
class ProcessLinks:
    """What this process shows to the others, and asks of them."""

    files: CertificateFiles | None = None
    allows_insecure: bool = True

    @classmethod
    def of(cls, options: InternalTlsOptions) -> ProcessLinks:
        """Raises StartupError naming the flag that is missing or wrong."""
        links = cls._read(options)
        if (address := getattr(options, "listen", None)) is not None:
            links._check(address, "listen")  # now, not when the model is loaded
        return links

    @classmethod
    def _read(cls, options: InternalTlsOptions) -> ProcessLinks:
        given = {name: path for name in _FLAGS if (path := getattr(options, name)) is not None}
        if not given:
            return cls(None, options.allow_insecure_internal)
        for name in _FLAGS:
            if name not in given:
                raise StartupError(f"--{name.replace('_', '-')} is missing: the three go together", field=name)
        certificate, key, authority = (Path(given[name]) for name in _FLAGS)
        files = CertificateFiles(certificate, key, authority, _FLAGS)
        ServerCertificates(files, "required")  # what is wrong is said at the start, by clients too
        return cls(files, options.allow_insecure_internal)

    def server_credentials(self, address: str) -> grpc.ServerCredentials | None:
        """For a server at the address; None for a Unix socket. Raises StartupError where it would stand open."""
        self._check(address, "listen")
        if self.files is None or is_unix(address):
            return None
        return ServerCertificates(self.files, "required").grpc_credentials()

    def channel_credentials(self, address: str) -> grpc.ChannelCredentials | None:
        """For a channel to the address; None for a Unix socket. Raises StartupError where others could listen in."""
        self._check(address, "connect")
        if self.files is None or is_unix(address):
            return None
        found = self.files.read()
        return grpc.ssl_channel_credentials(found.authority, found.key, found.certificate)

    def _check(self, address: str, what: str) -> None:
        if address.startswith("unix-abstract:"):
            message = f"cannot {what} at {address}: every user of the host can reach it; use unix:/path"
            raise StartupError(message, field="listen")
        if self.files is None and not self.allows_insecure and not is_unix(address) and not is_loopback(address):
            message = (
                f"refusing to {what} at {address} without TLS: give --internal-tls-cert, --internal-tls-key and "
                "--internal-tls-ca, or --allow-insecure-internal if nobody else can reach that network"
            )
            raise StartupError(message, field="internal_tls_cert")


def is_unix(address: str) -> bool:
    """Whether it is the path of a socket."""
    return address.startswith("unix:")


def is_loopback(address: str) -> bool:
    """Whether only this host reaches a host:port; a name other than localhost may be anything."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
