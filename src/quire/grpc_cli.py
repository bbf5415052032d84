"""`quire grpc`: calls any gRPC server that has reflection, from the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quire.errors import InvalidRequestError

if TYPE_CHECKING:
    from quire.client.tls import TlsArguments

Address = Annotated[
    str, typer.Option(help="gRPC address of a running server; https:// before it asks for TLS.", envvar="QUIRE_ADDRESS")
]
CaCerts = Annotated[
    Path | None, typer.Option(help="Connect with TLS, to a server whose certificate one of these has signed (PEM).")
]
CertFile = Annotated[Path | None, typer.Option(help="The certificate to show to the server (PEM).")]
KeyFile = Annotated[Path | None, typer.Option(help="Its key (PEM).")]
_ADDRESS = "127.0.0.1:50051"

app = typer.Typer(
    help="Call a gRPC server that has reflection. Messages are JSON, with the names of the fields as in the .proto.\n\n"
    "quire grpc list\n\n"
    "quire grpc describe quire.v1.GenerateRequest\n\n"
    """quire grpc call quire.v1.GenerateService/Generate '{"text": "Once", "sampling_params": {"max_tokens": 8}}'""",
    no_args_is_help=True,
)


@app.command("list")
def list_services(
    address: Address = _ADDRESS,
    ssl_ca_certs: CaCerts = None,
    ssl_certfile: CertFile = None,
    ssl_keyfile: KeyFile = None,
) -> None:
    """Print the services and their methods."""
    from quire.reflection_client import ReflectionClient

    tls: TlsArguments = {"ssl_ca_certs": ssl_ca_certs, "ssl_certfile": ssl_certfile, "ssl_keyfile": ssl_keyfile}
    with ReflectionClient.connected(address, **tls) as client:
        for line in client.list():
            typer.echo(line)


@app.command()
def describe(
    symbol: Annotated[str, typer.Argument(help="Full name of a service, message or enum.")],
    address: Address = _ADDRESS,
    ssl_ca_certs: CaCerts = None,
    ssl_certfile: CertFile = None,
    ssl_keyfile: KeyFile = None,
) -> None:
    """Print the definition of a service, message or enum."""
    from quire.reflection_client import ReflectionClient

    tls: TlsArguments = {"ssl_ca_certs": ssl_ca_certs, "ssl_certfile": ssl_certfile, "ssl_keyfile": ssl_keyfile}
    with ReflectionClient.connected(address, **tls) as client:
        for line in client.describe(symbol):
            typer.echo(line)


@app.command()
def call(
    method: Annotated[str, typer.Argument(help="Full name of the method: package.Service/Method.")],
    request: Annotated[
        str, typer.Argument(help="The request as JSON; - reads it from standard input, one message per line.")
    ] = "{}",
    address: Address = _ADDRESS,
    deadline: Annotated[float, typer.Option(help="Seconds until the call is given up.")] = 600.0,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", help="Metadata, as 'name: value' (repeat for more).")
    ] = None,
    ssl_ca_certs: CaCerts = None,
    ssl_certfile: CertFile = None,
    ssl_keyfile: KeyFile = None,
) -> None:
    """Call a method and print each response as one line of JSON. Ctrl-C cancels the call.

    A server with API keys wants -H 'authorization: Bearer KEY'.
    """
    from quire.reflection_client import ReflectionClient

    requests = [line for line in sys.stdin if line.strip()] if request == "-" else [request]
    metadata = [_metadata(entry) for entry in header or ()]
    tls: TlsArguments = {"ssl_ca_certs": ssl_ca_certs, "ssl_certfile": ssl_certfile, "ssl_keyfile": ssl_keyfile}
    with ReflectionClient.connected(address, **tls) as client:
        for line in client.call(method, requests, deadline, metadata):
            typer.echo(line)


def _metadata(entry: str) -> tuple[str, str]:
    name, separator, value = entry.partition(":")
    if not separator or not name.strip():
        raise InvalidRequestError(f"a header is 'name: value', not {entry!r}", field="header")
    return name.strip().lower(), value.strip()
