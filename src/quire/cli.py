"""The `quire` command. Flags are generated from the settings classes, so each default is written once."""

from __future__ import annotations

import gc
import inspect
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import typer
from pydantic import ByteSize
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from quire.bench.settings import CompareSettings, LatencySettings, ServeBenchSettings, ThroughputSettings
from quire.config import ExecutorSettings, GatewaySettings, SchedulerSettings, ServeSettings, _Settings
from quire.errors import QuireError
from quire.grpc_cli import Address, CaCerts, CertFile, KeyFile
from quire.grpc_cli import app as grpc_app
from quire.inspect.command import inspect as inspect_pool
from quire.process import run_process
from quire.supervision.commands import status, upgrade

if TYPE_CHECKING:
    from quire.client.tls import TlsArguments

app = typer.Typer(
    name="quire", help="Serve large language models.", no_args_is_help=True, pretty_exceptions_enable=False
)
bench = typer.Typer(help="Measure a running server, or this machine without one.", no_args_is_help=True)
app.add_typer(bench, name="bench")
app.add_typer(grpc_app, name="grpc")
app.command()(status)
app.command()(upgrade)
app.command("inspect")(inspect_pool)


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


def _serve(settings: ServeSettings) -> None:
    from quire.serve import serve

    raise typer.Exit(serve(settings))


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


def _add_command(
    name: str,
    settings_type: type[_Settings],
    action: Callable[[Any], None],
    summary: str,
    *,
    takes_model: bool = False,
    to: typer.Typer = app,
) -> None:
    """A command whose flags are the fields of `settings_type`."""

    def command(**given: Any) -> None:
        config = given.pop("config")
        positional = given.pop("model_argument", None)
        values = {key: value for key, value in given.items() if value not in (None, [])}
        if positional is not None:
            values["model"] = positional
        action(settings_type.load(values, config))

    parameters = [_parameter(field_name, field, settings_type) for field_name, field in _fields(settings_type)]
    config_option = Annotated[Path | None, typer.Option(help="YAML file with settings, by the names of the flags.")]
    parameters.append(
        inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=config_option)
    )
    if takes_model:
        argument = Annotated[str | None, typer.Argument(metavar="MODEL", help="The same as --model.")]
        parameters.append(
            inspect.Parameter("model_argument", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=argument)
        )
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__doc__ = summary
    to.command(name)(command)


def _fields(settings_type: type[_Settings]) -> list[tuple[str, FieldInfo]]:
    """The settings in the order in which their groups are named; a class's own come first."""
    order = list(settings_type.__mro__)
    return sorted(settings_type.model_fields.items(), key=lambda entry: order.index(_home(entry[0], settings_type)))


def _home(name: str, settings_type: type[_Settings]) -> type:
    """The class that declares a setting."""
    return next(cls for cls in settings_type.__mro__ if name in inspect.get_annotations(cls))


def _parameter(name: str, field: FieldInfo, settings_type: type[_Settings]) -> inspect.Parameter:
    """A flag that is None (or empty) unless it was given: defaults stay where they are written."""
    kind = _flag_type(field)
    flag = "--" + name.replace("_", "-")
    names = [f"{flag}/--no-{flag[2:]}"] if kind is bool else [flag]
    option = typer.Option(*names, help=_help(field), rich_help_panel=_panel(name, settings_type), show_default=False)
    annotation: Any = Annotated[kind if get_origin(kind) is list else kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _flag_type(field: FieldInfo) -> Any:
    """What typer parses; pydantic checks ranges and the rest."""
    kind = field.annotation
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (member for member in get_args(kind) if member is not NoneType)
    return str if kind is ByteSize else kind


def _help(field: FieldInfo) -> str:
    description = field.description or ""
    default = field.default
    if default is None or default is PydanticUndefined or "default:" in description:
        return description
    return f"{description} \\[default: {default}]"


def _panel(name: str, settings_type: type[_Settings]) -> str:
    """The heading of the group that a setting is declared in."""
    heading = (_home(name, settings_type).__doc__ or "").splitlines()[0].rstrip(".")
    return "Options" if heading.startswith("`") else heading


_add_command(
    "serve", ServeSettings, _serve, "Serve a model on this host: gateway, scheduler and executors.", takes_model=True
)
_add_command("gateway", GatewaySettings, _gateway, "Run a gateway alone: gRPC and REST for clients.")
_add_command("scheduler", SchedulerSettings, _scheduler, "Run a scheduler alone.")
_add_command("executor", ExecutorSettings, _executor, "Run an executor alone.")
_add_command(
    "serve", ServeBenchSettings, _bench_serve, "Put a running server (OpenAI-compatible, or gRPC) under load.", to=bench
)
_add_command("throughput", ThroughputSettings, _bench_throughput, "Time many requests given at once.", to=bench)
_add_command("latency", LatencySettings, _bench_latency, "Time a batch, again and again.", to=bench)
_add_command(
    "compare",
    CompareSettings,
    _bench_compare,
    "Hugging Face generate and Quire, side by side, at 1 to N users.",
    to=bench,
)

MaxTokens = Annotated[int | None, typer.Option(help="Longest answer, in tokens.")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy; default: the model's.")]
ApiKey = Annotated[str | None, typer.Option(help="The server's API key.", envvar="QUIRE_API_KEY", show_envvar=True)]

_DEFAULT_ADDRESS = "127.0.0.1:50051"


@app.command()
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


@app.command()
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


@app.command("hash-key")
def hash_key(
    key: Annotated[
        str | None, typer.Argument(help="- reads the key from standard input; default: a new one is made.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="Whose key it is.")] = "TENANT",
) -> None:
    """Make an entry for the file of --api-keys."""
    from quire.key_entries import print_entry

    print_entry(key, tenant)


@app.command()
def version() -> None:
    """Print the version."""
    from quire import __version__

    typer.echo(__version__)
