"""A thread that answers small packets, and descriptors with them, at a Unix socket: what stores of descriptors share.

The socket has mode 0600, and processes of other users are turned away all the same (`peer_credentials.py`). One thread
serves all connections in turn, so what it calls needs no locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import selectors
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from quire.peer_credentials import check_peer

logger = logging.getLogger(__name__)

_SEND_TIMEOUT_S: Final = 10.0


class PacketServer:
    """Calls back, from its thread, for every packet and for every end of a connection."""

    def __init__(
        self,
        listener: socket.socket,
        name: str,
        max_bytes: int,
        on_packet: Callable[[socket.socket, bytes, list[int]], None],
        on_end: Callable[[socket.socket], None],
    ) -> None:
        """Serves from now on.

        Args:
            listener: what `listen` gives; closed with the server.
            name: of the thread and in messages.
            max_bytes: of a packet; what is longer is cut off.
            on_packet: gets the connection, the packet and at most one descriptor, which is its own to close.
            on_end: gets a connection that is closed when it returns.
        """
        self._name = name
        self._max_bytes = max_bytes
        self._on_packet = on_packet
        self._on_end = on_end
        self._listener = listener
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def drop(self, connection: socket.socket) -> None:
        """Ends a connection. From the thread."""
        self._selector.unregister(connection)
        self._on_end(connection)
        connection.close()

    def close(self) -> None:
        """Ends the thread and all connections; nothing is called back any more."""
        os.write(self._woken, b"\0")
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
        os.close(self._wake)
        os.close(self._woken)

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                key.data()

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            try:
                check_peer(connection)
            except PermissionError:
                logger.exception("%s: a connection is refused", self._name)
                connection.close()
                return
            connection.settimeout(_SEND_TIMEOUT_S)
            self._selector.register(connection, selectors.EVENT_READ, lambda: self._receive(connection))

    def _receive(self, connection: socket.socket) -> None:
        try:
            message, descriptors, _, _ = socket.recv_fds(connection, self._max_bytes, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            message, descriptors = b"", []
        if message:
            self._on_packet(connection, message, descriptors)
            return
        for descriptor in descriptors:
            os.close(descriptor)
        self.drop(connection)


def listen(address: Path) -> socket.socket:
    """A new socket for packets at the address, for this user alone. Its file is the caller's to remove."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(str(address))
        address.chmod(0o600)
        listener.listen()
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def is_sealed(descriptor: int, seals: int) -> bool:
    """Whether it is a memfd that has (at least) these seals."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & seals == seals
    except OSError:  # not a memfd
        return False
