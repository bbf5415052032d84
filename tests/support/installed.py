"""Quire as users have it: built, installed into an empty environment, and run outside of the checkout."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import psutil
from support.deployment import ROOT

# Deadlines only: they keep a failing test from hanging.
_START_TIMEOUT_S: Final = 240.0
_STOP_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True)
class Distributions:
    """A source distribution, and the wheel that was built from it where nothing else was."""

    sdist: Path
    # Where it was unpacked and built.
    source: Path
    wheel: Path


def run(command: Sequence[object], *, cwd: Path, environment: Mapping[str, str] | None = None) -> str:
    """Runs a command to its end and returns what it printed."""
    result = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=None if environment is None else dict(environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert result.returncode == 0, f"{command} ended with {result.returncode}:\n{result.stdout}{result.stderr}"
    return result.stdout


def clean_environment(**more: str) -> dict[str, str]:
    """This process's variables without what leads to the checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "QUIRE_", "VIRTUAL_"))}
    return {**kept, **more}


def build_wheel(source: Path, out: Path) -> Path:
    """As the Dockerfile does: with isolation, and all versions from constraints.txt."""
    environment = clean_environment(PIP_CONSTRAINT=str(ROOT / "constraints.txt"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", out, "."]
    run(command, cwd=source, environment=environment)
    (wheel,) = out.glob("*.whl")
    return wheel


def free_port() -> int:
    """A port that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class RunningServer:
    """A started `quire serve`, or a process that runs one."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def wait_healthy(self) -> None:
        """Returns when /health says so; fails with the log if the process ends before."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._is_healthy():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def stop(self, number: signal.Signals, pid: int | None = None) -> int:
        """Signals the process (or another that makes it end) and returns its status."""
        os.kill(pid or self.process.pid, number)
        return self.process.wait(_STOP_TIMEOUT_S)

    def _is_healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=10).status_code == 200
        except httpx.TransportError:
            return False


@contextlib.contextmanager
def running(
    command: Sequence[object], port: int, log: Path, *, cwd: Path, environment: Mapping[str, str]
) -> Iterator[RunningServer]:
    """Starts a server and waits until it is healthy; whatever is left of it at the end is killed."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=cwd,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    family = psutil.Process(process.pid)
    try:
        server = RunningServer(process, f"http://127.0.0.1:{port}", log)
        server.wait_healthy()
        yield server
    finally:
        left = family.children(recursive=True) if process.poll() is None else []
        for member in (*left, process):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait(_STOP_TIMEOUT_S)


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for the names of sockets, which pytest's own does not."""
    with tempfile.TemporaryDirectory(prefix="q-", dir="/tmp") as name:
        yield Path(name)
