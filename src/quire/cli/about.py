"""Commands about the installation and the machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def version() -> None:
    """Print the version."""
    from quire import __version__

    typer.echo(__version__)


def collect_env(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Print what a report of a fault should say of machine and installation; no secrets."""
    from quire.collect_env import collect, render

    found = collect()
    typer.echo(json.dumps(found, indent=1) if as_json else render(found))
