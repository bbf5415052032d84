"""The KV pool outlives the scheduler that made it: the supervisor keeps a descriptor of it.

    scheduler                    PoolStore (a thread of the supervisor)
       │  FETCH                      │
       ├────────────────────────────▶│
       │  KEPT, descriptor           │     or NONE
       │◀────────────────────────────┤
       │  KEEP, descriptor           │     of another one that it made
       ├────────────────────────────▶│
       │  KEPT                       │     or REFUSED: a memfd that could shrink under those who map it
       │◀────────────────────────────┤

So the next scheduler finds blocks and journal as the last one left them. KEEP without a descriptor lets go of what is
kept. Nothing is kept of what is in the pool: a descriptor is all that the supervisor has to do with it.
"""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Final

from quire.errors import StartupError
from quire.kv_pool import FIXED_SIZE_SEALS
from quire.packet_server import PacketServer, is_sealed, listen
from quire.peer_credentials import check_peer

_FETCH, _KEEP = b"F", b"K"
_KEPT, _NONE, _REFUSED = b"K", b"N", b"R"
_TIMEOUT_S: Final = 10.0


class PoolStore:
    """Keeps the pool that was deposited last, for as long as it is open."""

    def __init__(self, address: Path) -> None:
        self.address = address
        self._descriptor: int | None = None
        self._server = PacketServer(listen(address), "pool-store", 1, self._answer, lambda connection: None)

    def close(self) -> None:
        """Ends the thread and lets go of the pool."""
        self._server.close()
        self.address.unlink(missing_ok=True)
        self._keep(None)

    def _answer(self, connection: socket.socket, message: bytes, descriptors: list[int]) -> None:
        try:
            if message == _KEEP and all(map(_may_be_kept, descriptors)):
                self._keep(descriptors.pop() if descriptors else None)
                connection.send(_KEPT)
            elif message == _FETCH and self._descriptor is not None:
                socket.send_fds(connection, [_KEPT], [self._descriptor])
            else:
                connection.send(_NONE if message == _FETCH else _REFUSED)
        except OSError:  # a peer that left already
            self._server.drop(connection)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _keep(self, descriptor: int | None) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = descriptor


def fetch_pool(address: Path) -> int | None:
    """A descriptor of the kept pool, the caller's to close; None if none is kept. Raises StartupError."""
    message, descriptors = _call(address, _FETCH, [])
    if message == _KEPT and descriptors:
        return descriptors[0]
    return None


def deposit_pool(address: Path, descriptor: int | None) -> None:
    """Has this pool kept (none, if None) in place of the last. Raises StartupError."""
    message, _ = _call(address, _KEEP, [] if descriptor is None else [descriptor])
    if message != _KEPT:
        raise StartupError(f"the store at {address} does not keep this KV pool")


def _call(address: Path, request: bytes, descriptors: list[int]) -> tuple[bytes, list[int]]:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.connect(str(address))
            check_peer(connection)
            socket.send_fds(connection, [request], descriptors)
            message, received, _, _ = socket.recv_fds(connection, 1, 1, socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        raise StartupError(f"the store of the KV pool at {address} cannot be reached: {error}") from error
    return message, received


def _may_be_kept(descriptor: int) -> bool:
    """A file with a name, or memory that nobody can shrink."""
    found = os.fstat(descriptor)
    has_name = stat.S_ISREG(found.st_mode) and found.st_nlink > 0
    return has_name or is_sealed(descriptor, FIXED_SIZE_SEALS)
