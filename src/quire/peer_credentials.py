"""Who is at the other end of a Unix socket (SO_PEERCRED, unix(7)).

A folder of mode 0700 and a socket of mode 0600 keep other users out already. Before descriptors change hands we ask the
kernel all the same, since a folder may have been opened by mistake, and a path may lead to somebody else's socket.
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from typing import Self

_UCRED = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class PeerCredentials:
    """A process as the kernel knew it when the connection was made (at the server's end: when it began to listen)."""

    pid: int
    uid: int
    gid: int

    @classmethod
    def of(cls, connection: socket.socket) -> Self:
        """The peer of a connected Unix socket."""
        return cls(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def check_peer(connection: socket.socket) -> PeerCredentials:
    """The peer, which belongs to our own user or to root. Raises PermissionError, an OSError, for all others."""
    peer = PeerCredentials.of(connection)
    if peer.uid not in (os.geteuid(), 0):
        raise PermissionError(f"process {peer.pid} at the other end belongs to another user ({peer.uid})")
    return peer
