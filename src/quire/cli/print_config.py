"""`--print-config`: the settings as a file that --config reads again, with where each comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

import yaml
from pydantic import ByteSize

from quire.settings import SECRETS, Settings, home, in_panels


def render_config(settings: Settings, origins: Mapping[str, str]) -> str:
    """YAML. `origins` says where a setting comes from that is not its default. Secrets are comments."""
    lines = []
    for panel, members in groupby(in_panels(type(settings)), key=lambda entry: home(entry[0], type(settings)).panel):
        lines.append(f"# {panel}")
        lines += [_line(name, getattr(settings, name), origins.get(name, "default")) for name, _ in members]
        lines.append("")
    return "\n".join(lines)


def _line(name: str, value: object, origin: str) -> str:
    spelled = name.replace("_", "-")
    if name in SECRETS and value:
        return f"# {spelled}: not shown  # {origin}"
    return f"{spelled}: {_yaml(value)}  # {origin}"


def _yaml(value: object) -> str:
    """A value on one line."""
    if isinstance(value, Path):
        value = str(value.absolute())
    if isinstance(value, ByteSize):
        value = int(value)
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=math.inf)
    return text.removesuffix("...\n").rstrip()
