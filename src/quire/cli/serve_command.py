"""`quire serve`: its flags, vLLM's flags, a file, variables; `--print-config` shows what they come to."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path
from typing import Any, Final

import typer

from quire.cli.completion import complete_paths
from quire.cli.help import SettingsHelp
from quire.cli.settings_command import CONFIG, only_given, parameter, parameters
from quire.config import ServeSettings
from quire.errors import StartupError
from quire.settings import flag_name, read_config, variables_of

_VLLM: Final = "quire.vllm"


class ServeCommand(SettingsHelp):
    """Takes vLLM's flags out of the command line before it is parsed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Leaves vLLM's flags in the context."""
        if ctx.resilient_parsing:  # a shell asks how the line may go on
            return super().parse_args(ctx, args)
        from quire.cli.vllm_command_line import VllmCommandLine

        fields = ServeSettings.model_fields
        switches = {name for name, field in fields.items() if field.annotation is bool}
        line = VllmCommandLine(args, {*fields, "config"}, switches)
        ctx.meta[_VLLM] = line.vllm
        return super().parse_args(ctx, line.own)


def add_serve(to: typer.Typer, panel: str) -> None:
    """Adds the command."""
    model = typer.Argument(metavar="MODEL", help="The same as --model.", autocompletion=complete_paths)
    printed = typer.Option(
        "--print-config", help="Print the settings as YAML, and where each comes from; start nothing."
    )
    own = [
        inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
        parameter("model_argument", str | None, model),
        *parameters(ServeSettings),
        CONFIG,
        parameter("print_config", bool | None, printed),
    ]
    _serve.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    to.command("serve", cls=ServeCommand, rich_help_panel=panel)(_serve)


def _serve(
    *, ctx: typer.Context, model_argument: str | None, config: Path | None, print_config: bool | None, **given: Any
) -> None:
    """Serve a model on this host: gateway, scheduler and executors.

    Takes vLLM's flags too: docs/migration.md lists what becomes of each.
    """
    settings, origins = load(ctx.meta[_VLLM], only_given(given), model_argument, config)
    if print_config:
        from quire.cli.print_config import render_config

        typer.echo(render_config(settings, origins), nl=False)
        return
    from quire.serve import serve

    raise typer.Exit(serve(settings))


def load(
    vllm: dict[str, Any], given: dict[str, Any], model: str | None, config: Path | None
) -> tuple[ServeSettings, dict[str, str]]:
    """The settings, and for each that is not a default where it comes from. Raises StartupError."""
    from quire.vllm_arguments import translate, variables
    from quire.vllm_flags import VLLM_FLAGS

    if model is not None:
        if given.get("model", model) != model:
            raise StartupError(f"the model is {model} or --model {given['model']}; name one", field="model")
        given["model"] = model
    flags = translate({**given, **vllm})
    file = translate({} if config is None else read_config(config, ServeSettings, also=VLLM_FLAGS))
    from_vllm = variables(os.environ)
    from_quire = variables_of(ServeSettings)
    origins = dict.fromkeys(file.settings, str(config))
    origins |= {name: variable for name, (variable, _) in from_vllm.items()} | from_quire
    origins |= {name: flag_name(flag) for name, flag in flags.came_from.items()}
    settings = ServeSettings.from_sources(
        flags.settings, {**file.settings, **{name: value for name, (_, value) in from_vllm.items()}}
    )
    used = [
        f"{variable} gives {flag_name(name)}" for name, (variable, _) in from_vllm.items() if origins[name] == variable
    ]
    for notice in [*flags.notices, *file.notices, *used]:
        print(f"quire serve: {notice}", file=sys.stderr)  # noqa: T201
    return settings, origins
