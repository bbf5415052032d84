"""The commands of the split manifests, started here in the same order: they find each other, and heal apart."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from support.installed import RunningServer, free_port, running, short_folder
from support.manifests import containers, pods, written

pytestmark = pytest.mark.timeout(600)


def commands(folder: str) -> dict[str, list[str]]:
    """Each container's command of a variant, by its second word (gateway, scheduler, executor)."""
    found: dict[str, list[str]] = {}
    manifests: list[Mapping[str, Any]] = [manifest for path, manifest in written() if path.parent.name == folder]
    for pod in pods(manifests):
        for container in containers(pod):
            if command := container.get("command"):
                found[command[1]] = [*command[1:], *container["args"]]
    assert set(found) == {"gateway", "scheduler", "executor"}
    return found


@pytest.fixture(params=["split-pod", "split-hosts"])
def lines(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, list[str]]]:
    """The commands with paths, ports, the model and the size of the pool of this test."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "tls.key")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(tmp_path / "tls.crt", append=True)
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    internal = free_port()
    with short_folder() as sockets:
        replaced = {
            "/run/quire": str(sockets),
            "/etc/quire/tls": str(tmp_path),
            "quire-engine:50052": f"localhost:{internal}",
            "0.0.0.0:50052": f"localhost:{internal}",
            "--host=0.0.0.0": "--host=127.0.0.1",
            "--kv-cache-memory=4GiB": "--kv-cache-memory=64MiB",
        }
        yield {
            name: [replace(word, replaced) for word in line if not word.startswith("--model=")]
            for name, line in commands(request.param).items()
        } | {"TMPDIR": [str(sockets)]}


def replace(word: str, replaced: Mapping[str, str]) -> str:
    for old, new in replaced.items():
        word = word.replace(old, new)
    return word


@contextlib.contextmanager
def started(lines: dict[str, list[str]], name: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": lines["TMPDIR"][0], "PYTHONPATH": ":".join(sys.path)}
    process = subprocess.Popen([sys.executable, "-P", "-m", "quire", *lines[name]], env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait(60)


def complete(server: RunningServer) -> None:
    body = {"model": "quire-tiny", "prompt": "The", "max_tokens": 4}
    response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)
    assert response.status_code == 200, response.text


def test_they_serve_and_heal(lines: dict[str, list[str]], tmp_path: Path) -> None:
    port = free_port()
    gateway = [sys.executable, "-P", "-m", "quire", *lines["gateway"], "--port", port, "--grpc-port", free_port()]
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": lines["TMPDIR"][0], "PYTHONPATH": ":".join(sys.path)}
    with started(lines, "scheduler") as scheduler, contextlib.ExitStack() as executors:
        executor = executors.enter_context(started(lines, "executor"))
        with running(gateway, port, tmp_path / "gateway.log", cwd=tmp_path, environment=environment) as server:
            complete(server)
            executor.kill()
            executor.wait(60)
            executor = executors.enter_context(started(lines, "executor"))
            server.wait_healthy()
            complete(server)
            assert server.stop(signal.SIGTERM) == 0
        for process in (scheduler, executor):
            process.terminate()
            assert process.wait(60) == 0
