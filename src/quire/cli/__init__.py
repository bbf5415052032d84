"""The `quire` command: its commands, in the groups in which `quire --help` lists them.

What a command needs is imported when it runs: `quire chat` loads no server, and --help nothing at all.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from quire.bench.settings import CompareSettings, LatencySettings, ServeBenchSettings, ThroughputSettings
from quire.cli.about import collect_env, version
from quire.cli.clients import chat, complete, hash_key
from quire.cli.serve_command import add_serve
from quire.cli.settings_command import add_command
from quire.config import DevicePoolSettings, ExecutorSettings, GatewaySettings, SchedulerSettings
from quire.errors import QuireError
from quire.grpc_cli import app as grpc_app
from quire.inspect.command import inspect as inspect_pool
from quire.process import run_process
from quire.supervision.commands import status, upgrade
from quire.top.command import top

# The groups of `quire --help`, in their order.
_SERVE: Final = "Serve"
_USE: Final = "Use a running server"
_MEASURE: Final = "Measure"
_LOOK: Final = "Look inside"
_PROCESSES: Final = "Single processes, as `quire serve` starts them"
_GROUPS: Final = (_SERVE, _USE, _MEASURE, _LOOK, _PROCESSES)


class _Commands(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        """In the order of their groups."""

        def place(name: str) -> int:
            group = getattr(self.commands[name], "rich_help_panel", None)
            return _GROUPS.index(group) if group in _GROUPS else len(_GROUPS)

        return sorted(self.commands, key=place)


app = typer.Typer(
    name="quire",
    cls=_Commands,
    help="Serve large language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Measure a running server, or this machine without one.", no_args_is_help=True)


def main() -> int:
    """Runs the command line; returns the exit status."""
    try:
        app(standalone_mode=True)
    except QuireError as error:
        print(f"quire: error: {error.message}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _print_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Serve large language models."""


def _gateway(settings: GatewaySettings) -> None:
    gc.disable()  # until settle_garbage_collection
    from quire.gateway.server import run

    raise typer.Exit(run_process(f"gateway {settings.index}", settings, run))


def _scheduler(settings: SchedulerSettings) -> None:
    gc.disable()
    from quire.scheduler.server import run

    raise typer.Exit(run_process("scheduler", settings, run))


def _executor(settings: ExecutorSettings) -> None:
    gc.disable()
    # OpenMP's threads spin while they wait, against the scheduler and the gateway of the same machine: with two
    # threads on two cores a small model then runs ten times slower. Read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from quire.executor.server import run

    raise typer.Exit(run_process(f"executor {settings.index}", settings, run, use_uvloop=False))


def _device_pool(settings: DevicePoolSettings) -> None:
    from quire.device_pool.server import run

    raise typer.Exit(run_process("device-pool", settings, run))


def _bench_serve(settings: ServeBenchSettings) -> None:
    from quire.bench.serve import bench_serve

    bench_serve(settings)


def _bench_throughput(settings: ThroughputSettings) -> None:
    from quire.bench.offline import bench_throughput

    bench_throughput(settings)


def _bench_latency(settings: LatencySettings) -> None:
    from quire.bench.offline import bench_latency

    bench_latency(settings)


def _bench_compare(settings: CompareSettings) -> None:
    from quire.bench.compare import bench_compare

    bench_compare(settings)


add_serve(app, _SERVE)
app.command(rich_help_panel=_SERVE)(upgrade)
app.command("hash-key", rich_help_panel=_SERVE)(hash_key)
app.command(rich_help_panel=_USE)(chat)
app.command(rich_help_panel=_USE)(complete)
app.add_typer(grpc_app, name="grpc", rich_help_panel=_USE)
app.add_typer(bench, name="bench", rich_help_panel=_MEASURE)
app.command(rich_help_panel=_LOOK)(top)
app.command(rich_help_panel=_LOOK)(status)
app.command("inspect", rich_help_panel=_LOOK)(inspect_pool)
app.command("collect-env", rich_help_panel=_LOOK)(collect_env)
app.command(rich_help_panel=_LOOK)(version)
add_command(
    app, "gateway", GatewaySettings, _gateway, "Run a gateway alone: gRPC and REST for clients.", panel=_PROCESSES
)
add_command(app, "scheduler", SchedulerSettings, _scheduler, "Run a scheduler alone.", panel=_PROCESSES)
add_command(app, "executor", ExecutorSettings, _executor, "Run an executor alone.", panel=_PROCESSES)
add_command(
    app,
    "device-pool",
    DevicePoolSettings,
    _device_pool,
    "Hold a GPU's KV pool while executors restart.",
    panel=_PROCESSES,
)

add_command(
    bench, "serve", ServeBenchSettings, _bench_serve, "Put a running server (OpenAI-compatible, or gRPC) under load."
)
add_command(bench, "throughput", ThroughputSettings, _bench_throughput, "Time many requests given at once.")
add_command(bench, "latency", LatencySettings, _bench_latency, "Time a batch, again and again.")
add_command(
    bench, "compare", CompareSettings, _bench_compare, "Hugging Face generate and Quire, side by side, at 1 to N users."
)
