"""Hands descriptors to another process over a Unix socket (SCM_RIGHTS).

Shared memory then needs no name: nothing to guess, and nothing to leak when a process dies. The socket has mode 0600
and stands only while the descriptors are on offer; each side looks who the other is (`peer_credentials.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from quire.peer_credentials import check_peer
from quire.peers import Peers
from quire.runtime_dir import make_runtime_dir


class Handover:
    """Gives its descriptors to whoever connects; they stay open here.

    Register `fileno()` with an event loop and call `serve_one()` when it is readable.
    """

    def __init__(self, address: Path, descriptors: Sequence[int], peers: Peers | None = None) -> None:
        """Whoever takes the descriptors is added to `peers`."""
        self.address = address
        self._descriptors = list(descriptors)
        self._peers = peers
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(address))
        address.chmod(0o600)
        self._listener.listen()
        self._listener.setblocking(False)

    def fileno(self) -> int:
        return self._listener.fileno()

    def serve_one(self) -> None:
        """Answers one waiting connection, if there is one."""
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        with connection, contextlib.suppress(OSError):  # a peer that left already, or another user's
            check_peer(connection)
            if self._peers is not None:
                self._peers.add(connection)
            socket.send_fds(connection, [b"\0"], self._descriptors)

    def close(self) -> None:
        self._listener.close()
        self.address.unlink(missing_ok=True)


@contextlib.contextmanager
def offered(name: str, descriptors: Sequence[int], peers: Peers | None = None) -> Iterator[Path]:
    """Offers descriptors for the length of the block, from the running event loop; yields the socket's path.

    Whoever takes them is added to `peers`.
    """
    loop = asyncio.get_running_loop()
    folder = make_runtime_dir()
    try:
        with contextlib.closing(Handover(folder / f"{name}.sock", descriptors, peers)) as handover:
            loop.add_reader(handover.fileno(), handover.serve_one)
            try:
                yield handover.address
            finally:
                loop.remove_reader(handover.fileno())
    finally:
        folder.rmdir()


def fetch(address: Path, count: int, timeout_s: float = 10.0) -> list[int]:
    """The `count` descriptors that are offered at `address`, now the caller's to close.

    Raises OSError if nobody offers them there, or another user does.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(address))
        check_peer(connection)
        _, descriptors, flags, _ = socket.recv_fds(connection, 1, count)
    if len(descriptors) != count or flags & socket.MSG_CTRUNC:
        for descriptor in descriptors:
            os.close(descriptor)
        raise ConnectionError(f"what is offered there is not {count} descriptors")
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return descriptors
