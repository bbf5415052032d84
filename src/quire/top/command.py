"""`quire top`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from quire.errors import InvalidRequestError
from quire.grpc_cli import Address, CaCerts, CertFile, KeyFile

if TYPE_CHECKING:
    from quire.client.tls import TlsArguments


def top(
    address: Address = "127.0.0.1:50051",
    interval: Annotated[float, typer.Option(help="Seconds between two states, at least 0.1.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one state and end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --once: for programs, as /monitor/state has it.")
    ] = False,
    api_key: Annotated[
        str | None, typer.Option(help="An operator's API key.", envvar="QUIRE_API_KEY", show_envvar=True)
    ] = None,
    ssl_ca_certs: CaCerts = None,
    ssl_certfile: CertFile = None,
    ssl_keyfile: KeyFile = None,
) -> None:
    """Watch a running server: throughput, latencies, requests, the KV pool. Ctrl-C ends it.

    Where the output is no terminal it is a line for each state. A server that restarts is waited for.
    """
    from quire.client import Client
    from quire.top.watch import show, show_once

    if as_json and not once:
        raise InvalidRequestError("--json needs --once", field="json")
    if not math.isfinite(interval) or interval < 0.1:
        raise InvalidRequestError(f"--interval must be at least 0.1 seconds, not {interval:g}", field="interval")
    tls: TlsArguments = {"ssl_ca_certs": ssl_ca_certs, "ssl_certfile": ssl_certfile, "ssl_keyfile": ssl_keyfile}
    with Client(address, api_key=api_key, **tls) as client:
        if once:
            show_once(client, address, interval, as_json=as_json)
        else:
            show(client, address, interval)
