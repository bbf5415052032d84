"""What a PromQL expression asks for, and promtool."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_SELECTOR = re.compile(r"\b((?:quire|vllm):\w+|up)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"[^"]*"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")


@dataclass(frozen=True)
class Query:
    """An expression's series, with the labels that each is matched by, and the labels that results are grouped by."""

    series: tuple[tuple[str, frozenset[str]], ...]
    groups: frozenset[str]

    @classmethod
    def of(cls, expression: str) -> Query:
        series = tuple((name, frozenset(_MATCHER.findall(labels))) for name, labels in _SELECTOR.findall(expression))
        groups = {label.strip() for labels in _GROUPING.findall(expression) for label in labels.split(",")}
        return cls(series, frozenset(groups))


def promtool(*arguments: str | Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs it."""
    path = shutil.which("promtool", path=str(Path(sys.executable).parent)) or shutil.which("promtool")
    assert path is not None, "promtool is missing: tools/install_promtool.sh .venv/bin"
    return subprocess.run([path, *map(str, arguments)], input=given, text=True, capture_output=True, timeout=60)
