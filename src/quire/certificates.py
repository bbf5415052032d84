"""A server's certificate, read from PEM files again when these change.

Handshakes ask for what is current; the files are looked at then (three calls of stat), so there is no timer, and
connections that stand keep what they began with. A new pair that cannot be used, or half of one, leaves the old one in
force and is logged once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import grpc

from quire.errors import StartupError

logger = logging.getLogger(__name__)

ClientCertificates = Literal["none", "optional", "required"]

_VERIFY_MODES = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where the files are, and the flags that named them."""

    certificate: Path
    # None: the certificate's file holds the key too.
    key: Path | None = None
    # Signs the certificates of clients.
    authority: Path | None = None
    flags: tuple[str, str, str] = ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs")

    def read(self) -> Certificates:
        """What they hold now. Raises StartupError naming the flag of a file that cannot be read."""
        certificate = _read(self.certificate, self.flags[0])
        key = certificate if self.key is None else _read(self.key, self.flags[1])
        authority = None if self.authority is None else _read(self.authority, self.flags[2])
        return Certificates(certificate, key, authority)

    def signature(self) -> tuple[tuple[int, ...] | None, ...]:
        """Differs when a file has been written or replaced."""
        return tuple(_stat(path) for path in (self.certificate, self.key, self.authority) if path is not None)


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM of one moment; all users of it see the same."""

    certificate: bytes
    key: bytes
    authority: bytes | None

    def context(self, clients: ClientCertificates, files: CertificateFiles) -> ssl.SSLContext:
        """TLS 1.2 or newer. Raises StartupError naming the flag of what is no certificate, key or pair."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # A resumed session would keep a client's certificate valid whose authority has been removed since.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
        context.set_alpn_protocols(["http/1.1"])
        with _as_path(self.certificate) as certificate, _as_path(self.key) as key:
            try:
                # A key that asks for a passphrase would ask the terminal.
                context.load_cert_chain(certificate, key, password=lambda: b"")
            except (ssl.SSLError, OSError, ValueError) as error:
                flag = "--" + files.flags[0].replace("_", "-")
                names = " and ".join(str(path) for path in (files.certificate, files.key) if path is not None)
                message = f"{flag}: {names} are no certificate and its key: {_reason(error)}"
                raise StartupError(message, field=files.flags[0]) from error
        context.verify_mode = _VERIFY_MODES[clients]
        if self.authority is not None:
            try:
                context.load_verify_locations(cadata=self.authority.decode("ascii"))
            except (ssl.SSLError, ValueError) as error:
                flag = "--" + files.flags[2].replace("_", "-")
                message = f"{flag}: {files.authority} holds no certificates: {_reason(error)}"
                raise StartupError(message, field=files.flags[2]) from error
        return context

    def grpc_configuration(self) -> grpc.ServerCertificateConfiguration:
        """The same for gRPC."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.authority)


class ServerCertificates:
    """What a server's handshakes use. May be called from any thread."""

    def __init__(self, files: CertificateFiles, clients: ClientCertificates) -> None:
        """Raises StartupError naming the flag of a file that is missing or wrong."""
        self._files = files
        self._clients = clients
        self._lock = threading.Lock()
        self._signature = files.signature()
        self._certificates = files.read()
        self._context = self._certificates.context(clients, files)

    def ssl_context(self) -> ssl.SSLContext:
        """For a server's life: each handshake on it goes on with the context that is current."""
        context = self._certificates.context(self._clients, self._files)

        # Called for every ClientHello, whether or not it names a server.
        def choose(connection: ssl.SSLObject, name: str | None, outer: ssl.SSLContext) -> None:
            connection.context = self.current()[1]

        context.sni_callback = choose
        return context

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For a gRPC server's life. Only required certificates are asked for: gRPC for Python has no way to offer."""
        given = self._certificates

        def changed() -> Any:  # None, which its types leave out, stands for no change
            nonlocal given
            current = self.current()[0]
            if current is given:
                return None
            given = current
            return current.grpc_configuration()

        return grpc.dynamic_ssl_server_credentials(given.grpc_configuration(), changed, self._clients == "required")

    def current(self) -> tuple[Certificates, ssl.SSLContext]:
        """What the files hold, if it can be used, else what they held."""
        with self._lock:
            if (signature := self._files.signature()) != self._signature:
                self._signature = signature
                try:
                    certificates = self._files.read()
                    self._context = certificates.context(self._clients, self._files)
                    self._certificates = certificates
                    logger.info("the certificate %s has been read again", self._files.certificate)
                except StartupError as error:
                    logger.error("%s; the certificate that was read before stays in use", error.message)
            return self._certificates, self._context


@contextlib.contextmanager
def _as_path(content: bytes) -> Iterator[str]:
    """A path under which OpenSSL, which reads files only, finds what has been read: nobody can change it between."""
    descriptor = os.memfd_create("quire-certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _read(path: Path, flag: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        message = f"--{flag.replace('_', '-')}: cannot read {path}: {error.strerror}"
        raise StartupError(message, field=flag) from error


def _stat(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason).lower().replace("_", " ") if reason else str(error)
