"""`quire status` and `quire upgrade` on the command line, with a server that only answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import pytest_asyncio
from typer.testing import CliRunner, Result

from quire.cli import app
from quire.errors import QuireError
from quire.runtime_dir import make_runtime_dir
from quire.supervision.control import ControlServer, Message

Serve: TypeAlias = "Callable[[int], Any]"

_PROCESS = {
    "name": "scheduler",
    "pid": 43,
    "state": "ready",
    "restarts": 2,
    "last_end": "scheduler was killed by SIGKILL",
}


@pytest_asyncio.fixture
async def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Serve]:
    """Starts the control socket of a server with that process id; no other server is seen."""
    servers: list[ControlServer] = []
    folders: list[Path] = []
    monkeypatch.setattr("quire.supervision.control.find_runtime_dirs", lambda: folders)

    async def start(pid: int) -> None:
        async def handle(message: Message) -> Message:
            if message["command"] == "status":
                ports = {"port": 8000, "grpc_port": 50051}
                return {"pid": pid, "model": "tiny", "ports": ports, "processes": [_PROCESS]}
            if message["process"] == "executor":
                raise QuireError("executor 0: no room")
            return {"upgraded": [message["process"]]}

        folders.append(make_runtime_dir())
        servers.append(ControlServer(folders[-1], handle))
        await servers[-1].start()

    yield start
    for server in servers:
        await server.close()
    for folder in folders:
        folder.rmdir()


async def _run(*arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, app, arguments)


async def test_status_is_shown(serve: Serve):
    await serve(42)
    shown = (await _run("status")).output
    for part in ("tiny", "42", "8000", "50051", "scheduler", "43", "ready", "2"):
        assert part in shown
    found = json.loads((await _run("status", "--json")).output)
    assert found["processes"] == [_PROCESS]


async def test_an_upgrade_says_what_was_done_or_why_not(serve: Serve):
    await serve(42)
    assert (await _run("upgrade", "scheduler")).output == "upgraded: scheduler\n"
    failed = (await _run("upgrade", "executor")).exception
    assert isinstance(failed, QuireError)
    assert failed.message == "executor 0: no room"
    assert (await _run("upgrade", "disk")).exit_code == 2


async def test_of_several_servers_one_is_chosen(serve: Serve):
    await serve(42)
    await serve(99)
    assert "choose one by --pid: 42, 99" in str((await _run("status")).exception)
    assert json.loads((await _run("status", "--json", "--pid", "99")).output)["pid"] == 99
    assert "as process 7" in str((await _run("upgrade", "scheduler", "--pid", "7")).exception)


async def test_no_server_is_said(serve: Serve):
    assert "no server of yours" in str((await _run("status")).exception)


async def test_what_is_left_of_a_server_is_passed_over(serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "control.sock").touch()
    monkeypatch.setattr("quire.supervision.control.find_runtime_dirs", lambda: [tmp_path, tmp_path / "gone"])
    assert "no server of yours" in str((await _run("status")).exception)
