"""Certificates for tests of TLS."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Pair:
    """Files of a certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates and writes them to a folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._authority = trustme.CA()
        self._folder = folder
        self.path = folder / f"{name}.pem"
        self._authority.cert_pem.write_to_path(str(self.path))

    def issue(self, name: str, *hosts: str, common_name: str | None = None) -> Pair:
        """A certificate for hosts, or for a client of this common name; replaces the files of that name at once."""
        issued = self._authority.issue_cert(*(hosts or ("client.invalid",)), common_name=common_name)
        pair = Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        for path, blobs in (
            (pair.key, [issued.private_key_pem]),
            (pair.certificate, issued.cert_chain_pems),
        ):
            new = path.with_suffix(path.suffix + ".new")
            new.write_bytes(b"".join(blob.bytes() for blob in blobs))
            new.replace(path)
        return pair

    def client_context(self, pair: Pair | None = None) -> ssl.SSLContext:
        """For a client that trusts this authority, and shows a certificate."""
        context = ssl.create_default_context(cafile=str(self.path))
        if pair is not None:
            context.load_cert_chain(pair.certificate, pair.key)
        return context
