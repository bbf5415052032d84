"""Commands that talk to a running server, and the one that makes its keys."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from quire.grpc_cli import Address, CaCerts, CertFile, KeyFile

if TYPE_CHECKING:
    from quire.client.tls import TlsArguments

MaxTokens = Annotated[int | None, typer.Option(help="Longest answer, in tokens.")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy; default: the model's.")]
ApiKey = Annotated[str | None, typer.Option(help="The server's API key.", envvar="QUIRE_API_KEY", show_envvar=True)]

_DEFAULT_ADDRESS = "127.0.0.1:50051"


def complete(
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from standard input.")],
    address: Address = _DEFAULT_ADDRESS,
    max_tokens: MaxTokens = 64,
    temperature: Temperature = None,
    api_key: ApiKey = None,
    ssl_ca_certs: CaCerts = None,
    ssl_certfile: CertFile = None,
    ssl_keyfile: KeyFile = None,
) -> None:
    """Continue a text with a running server."""
    from quire.client import Client
    from quire.terminal import complete as run

    # A line's end is the shell's, as in `$(…)`; a model would take it for the end of a paragraph.
    text = sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt
    tls: TlsArguments = {"ssl_ca_certs": ssl_ca_certs, "ssl_certfile": ssl_certfile, "ssl_keyfile": ssl_keyfile}
    run(Client(address, api_key=api_key, **tls), text, max_tokens, temperature)


def chat(
    address: Address = _DEFAULT_ADDRESS,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    api_key: ApiKey = None,
    ssl_ca_certs: CaCerts = None,
    ssl_certfile: CertFile = None,
    ssl_keyfile: KeyFile = None,
) -> None:
    """Chat with a running server; an empty line or Ctrl-D ends it, and Ctrl-C an answer."""
    from quire.client import Client
    from quire.terminal import chat as run

    tls: TlsArguments = {"ssl_ca_certs": ssl_ca_certs, "ssl_certfile": ssl_certfile, "ssl_keyfile": ssl_keyfile}
    run(Client(address, api_key=api_key, **tls), system, max_tokens, temperature)


def hash_key(
    key: Annotated[
        str | None, typer.Argument(help="- reads the key from standard input; default: a new one is made.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="Whose key it is.")] = "TENANT",
) -> None:
    """Make an entry for the file of --api-keys."""
    from quire.key_entries import print_entry

    print_entry(key, tenant)
