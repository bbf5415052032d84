"""`quire hash-key`: an entry for the file of API keys, which holds no key itself."""

from __future__ import annotations

import hashlib
import secrets
import sys
from typing import Final

import typer
import yaml

from quire.errors import InvalidRequestError

# A hash hides a key only if nobody can try all keys.
_MIN_LENGTH: Final = 16
_NUM_RANDOM_BYTES: Final = 32


def print_entry(key: str | None, tenant: str) -> None:
    """Prints the YAML entry of a key: "-" reads it from standard input, None makes one and shows it this once.

    The key goes to standard error, so that `quire hash-key >> FILE` keeps it out of the file. Raises
    InvalidRequestError.
    """
    if key is None:
        key = "qk-" + secrets.token_urlsafe(_NUM_RANDOM_BYTES)
        typer.echo(f"{key}\n\nThis is the key; it is shown only now. Its entry in the file of --api-keys:\n", err=True)
    elif key == "-":
        key = sys.stdin.read().strip()
    else:
        raise InvalidRequestError("a key on the command line is for everyone to see; give it on standard input: -")
    if len(key) < _MIN_LENGTH or not key.isprintable() or not key.isascii():
        message = f"the key must have at least {_MIN_LENGTH} printable ASCII characters; longer is better"
        raise InvalidRequestError(message, field="key")
    entry = {"sha256": hashlib.sha256(key.encode()).hexdigest(), "tenant": tenant}
    typer.echo(yaml.safe_dump([entry], sort_keys=False, allow_unicode=True), nl=False)
