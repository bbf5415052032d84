"""What a PromQL expression asks for; promtool, and a Prometheus that scrapes."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

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


def _find(program: str) -> str:
    path = shutil.which(program, path=str(Path(sys.executable).parent)) or shutil.which(program)
    assert path is not None, f"{program} is missing: tools/install_promtool.sh .venv/bin"
    return path


def promtool(*arguments: str | Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs it."""
    return subprocess.run(
        [_find("promtool"), *map(str, arguments)], input=given, text=True, capture_output=True, timeout=60
    )


@dataclass(frozen=True)
class Prometheus:
    """A running one."""

    http: httpx.Client

    def query(self, expression: str) -> list[Any]:
        """The series of an instant query; none while it starts."""
        try:
            response = self.http.get("/api/v1/query", params={"query": expression})
        except httpx.TransportError:
            return []
        assert response.status_code in (200, 503), response.text
        return response.json()["data"]["result"] if response.status_code == 200 else []


@contextlib.contextmanager
def running_prometheus(configuration: Path, data: Path) -> Iterator[Prometheus]:
    """Ends with the block."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    line = [f"--config.file={configuration}", f"--storage.tsdb.path={data}", f"--web.listen-address={address}"]
    with subprocess.Popen([_find("prometheus"), *line], stderr=subprocess.DEVNULL) as process:
        try:
            with httpx.Client(base_url=f"http://{address}", timeout=20) as http:
                yield Prometheus(http)
        finally:
            process.terminate()
