"""Commands whose flags are generated from a settings class, so that each default is written once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import typer
from pydantic import ByteSize
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from quire.cli.completion import complete_paths
from quire.cli.help import SettingsHelp
from quire.settings import Settings, flag_name, home, in_panels

# Choices of at most so many characters stand beside their flag.
_SHORT_CHOICES: Final = 16
_VALUE_NAMES: Final[dict[Any, str]] = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH", ByteSize: "SIZE"}


def add_command(
    to: typer.Typer,
    name: str,
    settings_type: type[Settings],
    action: Callable[[Any], None],
    summary: str,
    *,
    panel: str | None = None,
) -> None:
    """Adds a command whose flags are the fields of `settings_type`; `panel` is its group in the list of commands."""

    def command(config: Path | None, **given: Any) -> None:
        action(settings_type.load(only_given(given), config))

    command.__signature__ = inspect.Signature([*parameters(settings_type), CONFIG])  # type: ignore[attr-defined]
    command.__doc__ = summary
    to.command(name, cls=SettingsHelp, rich_help_panel=panel)(command)


def parameters(settings_type: type[Settings]) -> list[inspect.Parameter]:
    """A command's parameters for all fields of `settings_type`."""
    return [_parameter(name, field, settings_type) for name, field in in_panels(settings_type)]


def parameter(name: str, kind: Any, option: Any) -> inspect.Parameter:
    """A command's parameter that is None unless it was given."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


CONFIG: Final = parameter(
    "config",
    Path | None,
    typer.Option(
        metavar="FILE",
        help="YAML file of settings, by the names of the flags; a flag or a variable is stronger.",
        autocompletion=complete_paths,
    ),
)


def only_given(values: dict[str, Any]) -> dict[str, Any]:
    """The settings that a command line gives."""
    return {name: value for name, value in values.items() if value not in (None, [])}


def _parameter(name: str, field: FieldInfo, settings_type: type[Settings]) -> inspect.Parameter:
    """A flag that is None (or empty) unless it was given: defaults stay where they are written."""
    kind = _flag_type(field)
    flag = flag_name(name)
    names = [f"{flag}/--no-{flag[2:]}"] if kind is bool else [flag]
    option = typer.Option(
        *names,
        help=_help(field),
        metavar=value_name(field),
        rich_help_panel=home(name, settings_type).panel,
        show_default=False,
        autocompletion=complete_paths if kind is Path or name == "model" else None,
    )
    return parameter(name, kind if get_origin(kind) is list else kind | None, option)


def _flag_type(field: FieldInfo) -> Any:
    """What typer parses; pydantic checks ranges and the rest."""
    kind = _kind(field)
    if get_origin(kind) is list:
        return list[str]  # each of which may hold several, with commas between
    return str if kind is ByteSize else kind


def _kind(field: FieldInfo) -> Any:
    """The type of a setting, None apart."""
    kind = field.annotation
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (member for member in get_args(kind) if member is not NoneType)
    return kind


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The values that a setting can have, if these are a few words."""
    kind = _kind(field)
    return get_args(kind) if get_origin(kind) is Literal else ()


def value_name(field: FieldInfo) -> str | None:
    """What --help shows for a setting's value; None for one that is on or off."""
    kind = _kind(field)
    if names := choices(field):
        shown = "|".join(names)
        return shown if len(shown) <= _SHORT_CHOICES else "NAME"
    return None if kind is bool else _VALUE_NAMES.get(get_args(kind)[0] if get_origin(kind) is list else kind)


def _help(field: FieldInfo) -> str:
    """The description, the choices unless they stand beside the flag, and the default."""
    description = field.description or ""
    default = default_text(field)
    notes = []
    if value_name(field) == "NAME":
        notes.append(", ".join(choices(field)))
    if default is not None and "default:" not in description:
        notes.append(f"default:\N{NO-BREAK SPACE}{default}")
    return f"{description} [dim]\\[{'; '.join(notes)}][/dim]" if notes else description


def default_text(field: FieldInfo) -> str | None:
    """A setting's default as one would write it, or None if it has none that could be written."""
    default = field.default
    if default in (None, PydanticUndefined, [], ""):
        return None
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, float):
        return f"{default:g}"
    return ",".join(default) if isinstance(default, list) else str(default)
