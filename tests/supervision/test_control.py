"""The control socket, without a server behind it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from quire.errors import QuireError
from quire.runtime_dir import make_runtime_dir
from quire.supervision.control import ControlServer, Message, call


async def _handle(message: Message) -> Message:
    match message["command"]:
        case "echo":
            return message
        case "wait":
            await asyncio.Event().wait()
    raise QuireError("no such command")


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = make_runtime_dir()
    yield folder
    folder.rmdir()  # nothing is left in it


@pytest_asyncio.fixture
async def server(folder: Path) -> AsyncIterator[ControlServer]:
    server = ControlServer(folder, _handle)
    await server.start()
    yield server
    await server.close()


async def _call(folder: Path, message: Message) -> Message:
    return await asyncio.to_thread(call, folder, message, 30.0)


async def test_commands_are_answered(server: ControlServer, folder: Path):
    assert (folder / "control.sock").stat().st_mode & 0o777 == 0o600
    message = {"command": "echo", "text": "ü\n"}
    assert await _call(folder, message) == message


async def test_errors_reach_the_caller(server: ControlServer, folder: Path):
    with pytest.raises(QuireError, match="no such command"):
        await _call(folder, {"command": "x"})


@pytest.mark.parametrize("line", [b"{\n", b"[]\n", b"\xff\n", b"x" * 100_000 + b"\n", b""])
async def test_what_is_no_command_is_refused(server: ControlServer, folder: Path, line: bytes):
    reader, writer = await asyncio.open_unix_connection(folder / "control.sock")
    writer.write(line)
    writer.write_eof()
    async with asyncio.timeout(30):
        assert b"error" in await reader.read()
    writer.close()
    assert await _call(folder, {"command": "echo"}) == {"command": "echo"}


async def test_other_users_are_refused(server: ControlServer, folder: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(connection: socket.socket) -> None:
        raise PermissionError("of another user")

    monkeypatch.setattr("quire.supervision.control.check_peer", refuse)
    reader, writer = await asyncio.open_unix_connection(folder / "control.sock")
    async with asyncio.timeout(30):
        assert await reader.read() == b""
    writer.close()


async def test_closing_ends_commands_that_run(server: ControlServer, folder: Path):
    waiting = asyncio.create_task(_call(folder, {"command": "wait"}))
    await asyncio.sleep(0.2)
    await server.close()
    with contextlib.suppress(ConnectionError), pytest.raises(QuireError, match="has ended before it answered"):
        await waiting
