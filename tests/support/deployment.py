"""What deployment files are checked against: Quire's own command line, and what Docker would copy."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

import yaml

from quire.config import ExecutorSettings, GatewaySettings, SchedulerSettings, ServeSettings
from quire.settings import Settings

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy"

_COMMANDS: Final[Mapping[str, type[Settings]]] = {
    "serve": ServeSettings,
    "gateway": GatewaySettings,
    "scheduler": SchedulerSettings,
    "executor": ExecutorSettings,
}


def load_command(line: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """The settings that a command line (`quire serve --port=1`, perhaps behind tini) and its variables stand for.

    The line is read by quire's own classes, so a flag, a variable or a value that does not exist fails.
    """
    words = list(line[line.index("quire") + 1 :]) if "quire" in line else list(line[1:])
    settings = _COMMANDS[words.pop(0)]
    given: dict[str, Any] = {}
    while words:
        name, separator, value = words.pop(0).partition("=")
        assert name.startswith("--"), f"{name} is no flag"
        field = name[2:].replace("-", "_")
        assert field in settings.model_fields, f"{settings.__name__} has no {name}"
        text = value if separator else words.pop(0)
        # A flag that takes several values stands once for each.
        if isinstance(given.get(field), list):
            given[field].append(text)
        else:
            given[field] = [text] if _takes_several(settings, field) else text
    for variable, text in environment.items():
        if variable.startswith("QUIRE_"):
            field = variable.removeprefix("QUIRE_").lower()
            assert field in settings.model_fields, f"{settings.__name__} has no variable {variable}"
            given.setdefault(field, text)
    return settings.load(given)


def _takes_several(settings: type[Settings], field: str) -> bool:
    return "list" in str(settings.model_fields[field].annotation)


def load_yaml(path: Path) -> list[dict[str, Any]]:
    """All documents of a file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


def docker_context(ignore_file: Path) -> Iterator[Path]:
    """The files below the root, as relative paths, that Docker sends to the builder: the last pattern decides."""
    patterns = [line for line in ignore_file.read_text().splitlines() if line and not line.startswith("#")]
    for folder, subfolders, files in os.walk(ROOT):
        relative = Path(folder).relative_to(ROOT)
        subfolders[:] = [name for name in subfolders if not (relative == Path() and name.startswith("."))]
        linked = [name for name in subfolders if Path(folder, name).is_symlink()]
        for name in (*files, *linked):
            if not _is_ignored(relative / name, patterns):
                yield relative / name


def _is_ignored(path: Path, patterns: Sequence[str]) -> bool:
    ignored = False
    candidates = [str(path), *(str(parent) for parent in path.parents if parent != Path())]
    for pattern in patterns:
        is_exception, plain = pattern.startswith("!"), pattern.removeprefix("!")
        if any(_matches(candidate, plain) for candidate in candidates):
            ignored = not is_exception
    return ignored


def _matches(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch(path.rpartition("/")[2], pattern.removeprefix("**/"))
    return path.count("/") == pattern.count("/") and fnmatch(path, pattern)
