"""What the image runs, in namespaces of its own nearly as a container runtime would (container.sh).

No image was built: this is the wheel that the Dockerfile builds, with its entrypoint, health check and user.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from dockerfile_parse import DockerfileParser
from support.deployment import DEPLOY, ROOT
from support.installed import RunningServer, free_port, running

pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes namespaces and changes users"),
]

HERE = Path(__file__).parent
DOCKERFILE = {entry["instruction"]: entry["value"] for entry in DockerfileParser(str(DEPLOY / "docker")).structure}


@dataclass(frozen=True)
class Container:
    """A running server, and how to run something beside it."""

    server: RunningServer
    pid: int
    environment: list[str]

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """As `docker exec` does."""
        enter = [
            "nsenter",
            "-t",
            str(self.pid),
            "-m",
            "-p",
            "-r",
            "-w",
            "setpriv",
            "--reuid",
            "10001",
            "--clear-groups",
        ]
        line = [*enter, "env", "-i", *self.environment, *command]
        return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)

    def names(self) -> list[str]:
        """The processes, as a list of the container's own."""
        return self.execute("ps", "-eo", "args", "--no-headers").stdout.splitlines()


def entrypoint() -> list[str]:
    found: list[str] = json.loads(DOCKERFILE["ENTRYPOINT"])
    return found


# With Docker's seccomp profile there is no io_uring; and an operator may call quire without tini.
WITHOUT_TINI = ["python", str(HERE / "without_io_uring.py"), "quire", "serve", "--host", "0.0.0.0"]


@pytest.fixture(params=[entrypoint(), WITHOUT_TINI], ids=["entrypoint", "without-tini-and-io-uring"])
def container(request: pytest.FixtureRequest, installed: Path, tmp_path: Path) -> Iterator[Container]:
    port = free_port()
    root = tmp_path / "root"
    root.mkdir()
    base = Path(shutil.which("python3", path=str(installed / "bin")) or "").resolve().parents[1]
    folders = dict.fromkeys(map(str, (installed, base, HERE, DEPLOY / "docker")))
    variables = [
        f"PATH={installed}/bin:/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE=1",
        "HF_HOME=/models/huggingface",
        f"QUIRE_PORT={port}",
        f"QUIRE_GRPC_PORT={free_port()}",
        "QUIRE_KV_CACHE_MEMORY=96MiB",
    ]
    unshare = ["unshare", "--mount", "--pid", "--fork", "--ipc", "--uts", "--kill-child"]
    mounted = ":".join(name for name in folders if not name.startswith("/usr"))
    command = [*unshare, HERE / "container.sh", root, mounted, "env", "-i", *variables, *request.param]
    with running(command, port, tmp_path / "log", cwd=ROOT, environment=os.environ) as server:
        (first,) = psutil.Process(server.process.pid).children()
        yield Container(server, first.pid, variables)


def test_it_serves_is_confined_and_drains(container: Container) -> None:
    health = ["python", str(DEPLOY / "docker/healthcheck.py")]
    result = container.execute(*health)
    assert result.returncode == 0, result.stderr
    assert "sandboxed: no network" in container.server.log.read_text()
    assert "asks for no API key" in container.server.log.read_text()
    for path, is_writable in (("/tmp/x", True), ("/models/x", True), ("/usr/x", False), ("/x", False)):
        assert (container.execute("touch", path).returncode == 0) is is_writable, path
    assert container.execute("quire", "status").returncode == 0
    assert psutil.Process(container.pid).uids().real == 10001
    family = psutil.Process(container.pid).children(recursive=True)

    status = drain_with_a_stream(container)
    assert status == 0, container.server.log.read_text()
    assert [member for member in family if member.is_running()] == []


def drain_with_a_stream(container: Container) -> int:
    """Asks process 1 to end while a stream runs, which must come to its end; returns the container's status."""
    body = {"model": "quire-tiny", "prompt": "The", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    has_begun, lines = threading.Event(), []

    def read() -> None:
        with httpx.stream("POST", f"{container.server.url}/v1/completions", json=body, timeout=120) as response:
            for line in response.iter_lines():
                has_begun.set()
                lines.append(line)

    reader = threading.Thread(target=read)
    reader.start()
    assert has_begun.wait(60)
    status = container.server.stop(signal.SIGTERM, container.pid)
    reader.join(60)
    assert "data: [DONE]" in lines
    return status


def test_health_check_fails_where_nobody_serves(installed: Path) -> None:
    command = [installed / "bin/python", DEPLOY / "docker/healthcheck.py"]
    environment = {"QUIRE_PORT": str(free_port())}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert "/health" in result.stderr
