"""The control socket of a supervisor: a JSON object per line, answered by one.

    {"command": "status"}                          {"pid": …, "model": …, "processes": [{"name": …}, …]}
    {"command": "upgrade", "process": "executor"}  {"upgraded": ["executor 0"]}, when it is done
                                                   or {"error": "…"}

It has mode 0600, lies in the supervisor's folder, and is answered to our own user (and root) alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

from quire.errors import QuireError
from quire.peer_credentials import check_peer
from quire.runtime_dir import find_runtime_dirs

logger = logging.getLogger(__name__)

Message: TypeAlias = dict[str, Any]

_NAME: Final = "control.sock"
# A command is written at once.
_READ_TIMEOUT_S: Final = 10.0
_STATUS_TIMEOUT_S: Final = 10.0


class ControlServer:
    """Answers commands from the running event loop."""

    def __init__(self, runtime_dir: Path, handle: Callable[[Message], Awaitable[Message]]) -> None:
        """`handle` may raise QuireError, which is the answer then."""
        self._path = runtime_dir / _NAME
        self._handle = handle
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listens. The folder keeps others out until the socket has its mode."""
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        self._path.chmod(0o600)

    async def close(self) -> None:
        """Ends commands that run, too."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        try:
            # A client that leaves or says nothing is nobody's loss.
            with contextlib.suppress(ConnectionError, TimeoutError):
                check_peer(writer.get_extra_info("socket"))
                writer.write(json.dumps(await self._answer(reader)).encode() + b"\n")
                await writer.drain()
        except PermissionError as error:
            logger.warning("a command is refused: %s", error)
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> Message:
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S):
                message = json.loads(await reader.readline())
        except ValueError as error:
            return {"error": f"a command is a line of JSON: {error}"}
        try:
            if not isinstance(message, dict):
                raise QuireError("a command is a JSON object")
            return await self._handle(message)
        except QuireError as error:
            return {"error": error.message}


def call(runtime_dir: Path, message: Message, timeout_s: float) -> Message:
    """The answer of the supervisor in a folder. Raises OSError if there is none, and QuireError if it says why."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(runtime_dir / _NAME))
        check_peer(connection)
        with connection.makefile("rwb") as stream:
            stream.write(json.dumps(message).encode() + b"\n")
            stream.flush()
            line = stream.readline()
    if not line:
        raise QuireError("the server has ended before it answered")
    answer: Message = json.loads(line)
    if "error" in answer:
        raise QuireError(answer["error"])
    return answer


def find_servers() -> list[tuple[Path, Message]]:
    """The folder and the status of each of our servers that runs on this host."""
    found = []
    for folder in find_runtime_dirs():
        with contextlib.suppress(OSError):  # what is left of a server, or a folder for something else
            found.append((folder, call(folder, {"command": "status"}, _STATUS_TIMEOUT_S)))
    return found
