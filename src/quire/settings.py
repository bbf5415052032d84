"""What all settings classes share: where values come from, how they are grouped, how they are told to a child.

A setting comes from, in falling precedence: a flag, a `QUIRE_*` variable, the YAML file of `--config`, the default in
its class. Settings are frozen.
"""

from __future__ import annotations

import difflib
import inspect
import json
import os
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import yaml
from pydantic import AfterValidator, BeforeValidator, ByteSize, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from quire.errors import StartupError

VARIABLE_PREFIX = "QUIRE_"

# Command lines and files of effective settings are for everyone to see.
SECRETS = frozenset({"api_key"})


class Panel(StrEnum):
    """Groups of flags, in the order in which --help and the reference show them."""

    OWN = "Options"
    MODEL = "Model"
    MEMORY = "Memory and cache"
    SCHEDULING = "Scheduling"
    API = "API and network"
    SECURITY = "Security"
    OBSERVABILITY = "Observability"
    CHAT = "Chat and tools"
    EXECUTORS = "Executors"
    OPERATION = "Operation"
    PROCESS = "A process of its own"
    TARGET = "Server"
    WORKLOAD = "Requests"
    ARRIVALS = "Arrivals"
    REPORT = "Report"


def _split_texts(value: object) -> object:
    """A list of texts as flags, variables and files give it: repeated, with commas between, or as JSON."""
    if isinstance(value, list):
        return [text for entry in value for text in _split_text(entry)]
    return _split_text(value)


def _split_text(value: object) -> list[object]:
    if not isinstance(value, str):
        return [value]
    return list(json.loads(value)) if value.startswith("[") else [*value.split(",")]


def _check_texts(texts: list[str]) -> list[str]:
    if not all(text and text.isprintable() and text == text.strip() for text in texts):
        raise ValueError("must not be empty, nor begin or end with a space")
    return texts


def _check_counts(counts: list[int]) -> list[int]:
    if not all(count > 0 for count in counts):
        raise ValueError("must be positive")
    return counts


# A setting with several values.
Texts = Annotated[list[str], NoDecode, BeforeValidator(_split_texts), AfterValidator(_check_texts)]
Counts = Annotated[list[int], NoDecode, BeforeValidator(_split_texts), AfterValidator(_check_counts)]


class Settings(BaseSettings):
    """Base of all settings classes."""

    # The group of the settings that a class declares itself.
    panel: ClassVar[Panel] = Panel.OWN

    model_config = SettingsConfigDict(
        env_prefix=VARIABLE_PREFIX,
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        # A process uses one of these classes and would spend 0.15 s of its start on the others.
        defer_build=True,
    )

    @classmethod
    def load(cls, given: Mapping[str, Any], config_file: Path | None = None) -> Self:
        """Settings from `given` (flags), the environment and a YAML file. Raises StartupError."""
        return cls.from_sources(given, {} if config_file is None else read_config(config_file, cls))

    @classmethod
    def from_sources(cls, given: Mapping[str, Any], from_file: Mapping[str, Any]) -> Self:
        """Settings from `given`, the environment and what a file held. Raises StartupError."""

        class Loader(cls):  # type: ignore[valid-type, misc]
            @classmethod
            def settings_customise_sources(
                cls,
                settings_cls: type[BaseSettings],
                init_settings: PydanticBaseSettingsSource,
                env_settings: PydanticBaseSettingsSource,
                dotenv_settings: PydanticBaseSettingsSource,
                file_secret_settings: PydanticBaseSettingsSource,
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                return init_settings, env_settings, InitSettingsSource(settings_cls, dict(from_file))

        try:
            loaded = Loader(**given)
        except ValidationError as error:
            raise StartupError(_explain(error, cls), field=_names(error)[0]) from error
        return cls.model_construct(**{name: getattr(loaded, name) for name in cls.model_fields})


def flag_name(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


def home(name: str, settings_type: type[Settings]) -> type[Settings]:
    """The class that declares a setting."""
    return next(cls for cls in settings_type.__mro__ if name in inspect.get_annotations(cls))


def in_panels(settings_type: type[Settings]) -> list[tuple[str, FieldInfo]]:
    """The settings in the order of their panels; within one, a class's own come first."""
    panels, classes = list(Panel), list(settings_type.__mro__)

    def place(entry: tuple[str, FieldInfo]) -> tuple[int, int]:
        declared = home(entry[0], settings_type)
        return panels.index(declared.panel), classes.index(declared)

    return sorted(settings_type.model_fields.items(), key=place)


def variables_of(settings_type: type[Settings]) -> dict[str, str]:
    """The variables of the environment that give a setting: by the setting, the variable."""
    found = {name.lower(): name for name in os.environ if name.upper().startswith(VARIABLE_PREFIX)}
    names = {name: f"{VARIABLE_PREFIX}{name}".lower() for name in settings_type.model_fields}
    return {name: found[variable] for name, variable in names.items() if variable in found}


def secret_variables(settings: Settings, process: type[Settings]) -> dict[str, str]:
    """The environment that gives a process its share of what `flags` leaves out."""
    names = SECRETS & process.model_fields.keys() & type(settings).model_fields.keys()
    return {f"{VARIABLE_PREFIX}{name.upper()}": ",".join(value) for name in names if (value := getattr(settings, name))}


def flags(settings: Settings, process: type[Settings], **own: object) -> list[str]:
    """The command line that gives a process its share of `settings`, but for secrets, and its `own` settings."""
    names = (process.model_fields.keys() & type(settings).model_fields.keys()) - SECRETS
    shared = {name: getattr(settings, name) for name in process.model_fields if name in names}
    line: list[str] = []
    for name, value in {**shared, **own}.items():
        flag = flag_name(name)
        if value is None:
            continue
        if isinstance(value, bool):
            line.append(flag if value else "--no-" + flag[2:])
        elif isinstance(value, list):
            line += [part for entry in value for part in (flag, str(entry))]
        else:
            line += [flag, str(int(value)) if isinstance(value, ByteSize) else str(value)]
    return line


def read_config(path: Path, settings_type: type[Settings], also: Iterable[str] = ()) -> dict[str, Any]:
    """The settings of a YAML file, spelled as the flags or with underscores; null stands for what is not said.

    `also` names further settings that the caller understands. Raises StartupError.
    """
    if not path.is_file():
        raise StartupError(f"--config: no such file: {path}", field="config")
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StartupError(f"--config: {path} is not valid YAML: {error}", field="config") from error
    if not isinstance(content, dict):
        raise StartupError(f"--config: {path} holds no settings by name", field="config")
    settings = {str(name).lstrip("-").replace("-", "_"): value for name, value in content.items()}
    if len(settings) < len(content):
        raise StartupError(f"--config: {path} gives a setting twice, with - and with _", field="config")
    known = {*settings_type.model_fields, *also}
    for name in settings.keys() - known:
        raise StartupError(f"--config: {path}: {no_such_setting(name, known)}", field=name)
    return {name: value for name, value in settings.items() if value is not None}


def no_such_setting(name: str, known: Iterable[str]) -> str:
    """Says that a setting does not exist, and which ones are spelled like it."""
    near = difflib.get_close_matches(name, list(known), n=2)
    hint = f"; did you mean {' or '.join(map(flag_name, near))}?" if near else ""
    return f"there is no setting {flag_name(name)}{hint}"


def _names(error: ValidationError) -> list[str]:
    return [str(problem["loc"][0]) if problem["loc"] else "" for problem in error.errors()]


def _explain(error: ValidationError, settings_type: type[Settings]) -> str:
    return "; ".join(
        no_such_setting(name, settings_type.model_fields)
        if problem["type"] == "extra_forbidden"
        else f"{flag_name(name)}: {problem['msg']}"
        for name, problem in zip(_names(error), error.errors(), strict=True)
    )
