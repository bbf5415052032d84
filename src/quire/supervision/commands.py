"""`quire status` and `quire upgrade`: what a running server is asked from outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from quire.errors import QuireError
from quire.supervision.control import call, find_servers

# Longer than any upgrade: the server bounds each of its parts, and says which one was too slow.
_UPGRADE_TIMEOUT_S: Final = 3600.0

Pid = Annotated[int | None, typer.Option(help="Process id of `quire serve`, where several servers run.")]


def status(pid: Pid = None, as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Show the processes of a server that runs on this host."""
    _, found = _find(pid)
    if as_json:
        typer.echo(json.dumps(found))
        return
    # Imported now: every process of ours reads this module on its way to its own command.
    from rich.console import Console
    from rich.table import Table

    ports = found["ports"]
    where = f", REST on port {ports['port']}, gRPC on port {ports['grpc_port']}" if ports else ""
    table = Table(title=f"{found['model']} (process {found['pid']}{where})", title_justify="left")
    for column in ("process", "pid", "state", "restarts", "last end"):
        table.add_column(column)
    for process in found["processes"]:
        row = (process["name"], process["pid"], process["state"], process["restarts"], process["last_end"] or "")
        table.add_row(*map(str, row))
    Console(highlight=False).print(table)


def upgrade(
    process: Annotated[Literal["executor", "scheduler", "gateway"], typer.Argument(help="Which processes.")],
    pid: Pid = None,
) -> None:
    """Replace processes of a server that runs on this host, by ones of the code that is installed now."""
    folder, _ = _find(pid)
    answer = call(folder, {"command": "upgrade", "process": process}, _UPGRADE_TIMEOUT_S)
    typer.echo(f"upgraded: {', '.join(answer['upgraded'])}")


def _find(pid: int | None) -> tuple[Path, dict[str, Any]]:
    """The server with this process id, or the only one. Raises QuireError."""
    servers = [(folder, found) for folder, found in find_servers() if pid in (None, found["pid"])]
    if not servers:
        raise QuireError("no server of yours runs on this host" + (f" as process {pid}" if pid is not None else ""))
    if len(servers) > 1:
        pids = ", ".join(str(found["pid"]) for _, found in servers)
        raise QuireError(f"several servers run on this host; choose one by --pid: {pids}", field="pid")
    return servers[0]
