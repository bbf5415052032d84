"""The kernel's word on who is at the other end of a socket."""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

import pytest

from quire.peer_credentials import PeerCredentials, check_peer


class FakeSocket:
    """A socket of which the kernel says that its peer is this."""

    def __init__(self, pid: int, uid: int) -> None:
        self._answer = struct.pack("3i", pid, uid, 0)

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_PEERCRED)
        return self._answer[:size]


def test_a_peer_of_our_own_is_known_by_its_process() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert check_peer(ours) == PeerCredentials(os.getpid(), os.getuid(), os.getgid())


def test_root_is_trusted_and_another_user_is_not() -> None:
    root: Any = FakeSocket(1, 0)
    assert check_peer(root).uid == 0
    stranger: Any = FakeSocket(7, os.geteuid() + 1)
    with pytest.raises(PermissionError, match=f"process 7 .* another user \\({os.geteuid() + 1}\\)"):
        check_peer(stranger)
