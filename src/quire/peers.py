"""The processes that took descriptors from us, and how to know that they have ended.

Shared memory may be used again only once nobody can write it any more, and of a process that hangs or is unreachable
the one proof is its death. A pidfd names the process that connected and no other, however ids are used again
(SO_PEERPIDFD, Linux 6.5; before that, the id of its credentials, while its connection shows that it lives).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from typing import Final

from quire.peer_credentials import PeerCredentials

logger = logging.getLogger(__name__)

_SO_PEERPIDFD: Final = 77


class Peers:
    """Everyone who connected. Not more than a few."""

    def __init__(self) -> None:
        self._pidfds: list[int] = []
        # Some of them cannot be named: they live in a process namespace that we do not see.
        self._has_strangers = False

    @property
    def can_be_ended(self) -> bool:
        """Whether there are any, and all of them can be named."""
        return bool(self._pidfds) and not self._has_strangers

    def add(self, connection: socket.socket) -> None:
        """Takes note of who is at the other end."""
        try:
            self._pidfds.append(_pidfd_of(connection))
        except ProcessLookupError:
            logger.debug("a peer ended while it connected")
        except OSError as error:
            logger.warning("a process that takes descriptors cannot be watched: %s", error)
            self._has_strangers = True

    async def end(self, timeout_s: float) -> bool:
        """Kills them all; True once it is certain that all of them have ended, False if that cannot be known in time.

        From the running event loop.
        """
        for pidfd in self._pidfds:
            # One that has ended or must not be killed by us: what counts is whether it ends.
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        try:
            async with asyncio.timeout(timeout_s):
                for pidfd in self._pidfds:
                    await _ended(pidfd)
        except TimeoutError:
            return False
        return not self._has_strangers

    def close(self) -> None:
        """Forgets them; they live on."""
        while self._pidfds:
            os.close(self._pidfds.pop())


def _pidfd_of(connection: socket.socket) -> int:
    """Raises ProcessLookupError for a peer that has ended, and OSError for one that has no id here."""
    try:
        return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:  # an older kernel
        pid = PeerCredentials.of(connection).pid
    if pid <= 0:
        raise OSError("it has no process id here")
    pidfd = os.pidfd_open(pid)
    if _has_left(connection):  # then the id may be another's by now
        os.close(pidfd)
        raise ProcessLookupError(f"process {pid} has left")
    return pidfd


def _has_left(connection: socket.socket) -> bool:
    """Whether the other end is closed; peers send nothing."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


async def _ended(pidfd: int) -> None:
    """Waits for the end of a process, which makes its pidfd readable."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)
