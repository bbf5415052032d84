"""TCP ports: taking one, and keeping one for the processes that share it.

A supervisor keeps its ports for as long as it lives, by a socket that is bound and never listens. Gateways bind beside
it with SO_REUSEPORT (socket(7): of one user, each with the option), and the kernel spreads connections over those that
listen. So a gateway that was restarted finds its port free, and another server never does.
"""

from __future__ import annotations

import contextlib
import errno
import socket

from quire.errors import StartupError


def take_port(host: str, port: int, *, setting: str = "port", shared: bool = False) -> socket.socket:
    """A TCP socket that listens; or, with `shared`, one that is bound beside others and listens when it is to.

    Raises StartupError naming --host, or the setting that the port comes from.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # Of a name with several addresses, the one that clients without IPv6 reach too.
        family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    except OSError as error:
        raise StartupError(f"--host: cannot resolve {host}: {error}", field="host") from error
    bound = socket.socket(family, kind, protocol)
    try:
        # A port whose last connections linger is free; one that another process listens on is not.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        bound.bind(address)
        # Not if it is shared: the kernel would give it connections that others could serve at once.
        if not shared:
            bound.listen()
    except OSError as error:
        bound.close()
        flag = "--" + setting.replace("_", "-")
        hint = f"; choose another {flag}, or 0 for a free one" if error.errno == errno.EADDRINUSE else ""
        message = f"{flag}: cannot listen on {host}:{port}: {error.strerror}{hint}"
        raise StartupError(message, field=setting) from error
    return bound


class PortReservation:
    """Keeps a port for sockets that share it."""

    def __init__(self, host: str, port: int, setting: str) -> None:
        """Port 0 picks a free one. Raises StartupError as `take_port` does."""
        # Listening alone, without sharing, proves that nobody else has the port, not even another supervisor.
        with contextlib.closing(take_port(host, port, setting=setting)) as proof:
            proof.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._socket = socket.socket(proof.family, proof.type, proof.proto)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._socket.bind(proof.getsockname())
        # Now lingering connections no longer matter, and with this option a server that shares nothing could listen.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        self.port: int = self._socket.getsockname()[1]

    def close(self) -> None:
        self._socket.close()
