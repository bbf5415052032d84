"""The wheel in an empty environment, run from an empty folder where nothing leads to the checkout."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from support.deployment import ROOT
from support.installed import RunningServer, clean_environment, free_port, run, running, short_folder

from quire import __version__

pytestmark = pytest.mark.timeout(1200)  # the first test builds and installs


@pytest.fixture(scope="module")
def runtime() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def server(installed: Path, runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("work")
    port = free_port()
    command = [installed / "bin/quire", "serve", "--port", port, "--grpc-port", "0", "--kv-cache-memory", "64MiB"]
    environment = clean_environment(TMPDIR=str(runtime))
    with running(command, port, folder.with_name("serve.log"), cwd=folder, environment=environment) as started:
        yield started
        # What the last test leaves to be seen: Ctrl-C ends it, and nothing stays behind.
        family = psutil.Process(started.process.pid).children(recursive=True)
        assert len(family) == 3
        assert started.stop(signal.SIGINT) == 0
        assert [member for member in family if member.is_running()] == []
        assert list(runtime.iterdir()) == []
        assert list(folder.iterdir()) == []


def test_the_package_is_complete_and_elsewhere(installed: Path, tmp_path: Path) -> None:
    python = installed / "bin/python"
    place = run([python, "-c", "import quire; print(quire.__file__)"], cwd=tmp_path, environment=clean_environment())
    assert Path(place.strip()).is_relative_to(installed)
    run([installed / "bin/pip", "check"], cwd=tmp_path, environment=clean_environment())
    assert (
        run([installed / "bin/quire", "version"], cwd=tmp_path, environment=clean_environment()) == f"{__version__}\n"
    )
    paths = run([python, "-c", "import sys; print(sys.path)"], cwd=tmp_path, environment=clean_environment())
    assert str(ROOT) not in paths


def test_completion_is_streamed(server: RunningServer) -> None:
    body = {"model": "quire-tiny", "prompt": "The capital of France is", "max_tokens": 8, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert len(lines) > 4


def test_grpc_client_of_the_command_line(server: RunningServer, installed: Path, runtime: Path, tmp_path: Path) -> None:
    environment = clean_environment(TMPDIR=str(runtime))
    # This host may run other servers of ours.
    status = [installed / "bin/quire", "status", "--json", "--pid", server.process.pid]
    port = json.loads(run(status, cwd=tmp_path, environment=environment))["ports"]["grpc_port"]
    command = [
        installed / "bin/quire",
        "complete",
        "--address",
        f"127.0.0.1:{port}",
        "--max-tokens",
        "4",
        "The",
    ]
    assert run(command, cwd=tmp_path, environment=environment).strip()


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/metrics", "/version", "/v1/models"])
def test_pages_and_metrics(server: RunningServer, path: str) -> None:
    response = httpx.get(f"{server.url}{path}", timeout=60)
    assert response.status_code == 200
    assert response.content


@pytest.mark.parametrize("page", ["/", "/docs"])
def test_files_of_the_pages_are_in_the_wheel(server: RunningServer, page: str) -> None:
    html = httpx.get(f"{server.url}{page}", timeout=60).text
    files = re.findall(r"""(?:src|href)=["']([^"']+\.(?:js|css))["']""", html)
    assert files
    for name in files:
        assert httpx.get(httpx.URL(f"{server.url}{page}").join(name), timeout=60).status_code == 200, name
