"""Packed weights outlive the executor that packed them: sealed memfds that the supervisor keeps.

    executor                        WeightStore (a thread of the supervisor)
       │  key of what it needs          │
       ├───────────────────────────────▶│
       │  HAVE, digest, memfd           │     there is one: map it
       │◀───────────────────────────────┤
       │  or PACK                       │     there is none, and nobody else is at it
       │◀───────────────────────────────┤
       │  digest, sealed memfd          │     packed: kept, and given to all who wait meanwhile
       ├───────────────────────────────▶│

So a second executor on a host maps the same pages, and one that takes a dead one's place does not pack again. If the
one that packs goes away, the next that waits is told to. Messages are packets of a Unix socket of mode 0600 in the
supervisor's folder. A kept memfd is sealed against writing and resizing: no process can change another's model.

Torch-free, since the supervisor imports it.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quire.errors import StartupError
from quire.packet_server import PacketServer, is_sealed, listen
from quire.peer_credentials import check_peer

DIGEST_BYTES: Final = 32

_HAVE, _PACK = b"H", b"P"
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is kept for a key."""

    descriptor: int
    digest: bytes


class WeightStore:
    """Keeps the weights that were packed last, for as long as it is open."""

    def __init__(self, address: Path) -> None:
        self.address = address
        self._entries: dict[bytes, _Entry] = {}
        # Who packs which key, and who waits for which.
        self._packing: dict[socket.socket, bytes] = {}
        self._waiting: dict[socket.socket, bytes] = {}
        self._server = PacketServer(listen(address), "weight-store", DIGEST_BYTES, self._receive, self._forget)

    def close(self) -> None:
        """Ends the thread and lets go of everything; those who have mapped weights keep them."""
        self._server.close()
        self.address.unlink(missing_ok=True)
        for entry in self._entries.values():
            os.close(entry.descriptor)

    def _receive(self, connection: socket.socket, message: bytes, descriptors: list[int]) -> None:
        """A key, or packed weights."""
        if len(message) != DIGEST_BYTES or (connection in self._packing) != bool(descriptors):
            for descriptor in descriptors:
                os.close(descriptor)
            self._server.drop(connection)
        elif connection in self._packing:
            self._keep(self._packing.pop(connection), _Entry(descriptors[0], message))
        else:
            self._waiting[connection] = message
            self._answer()

    def _keep(self, key: bytes, entry: _Entry) -> None:
        if not is_sealed(entry.descriptor, _SEALS):
            os.close(entry.descriptor)
        else:
            # The latest alone: a host serves one model, and another key means that it has changed.
            for old in self._entries.values():
                os.close(old.descriptor)
            self._entries = {key: entry}
        self._answer()

    def _answer(self) -> None:
        """Tells all who wait what can be told now."""
        for connection, key in list(self._waiting.items()):
            entry = self._entries.get(key)
            if entry is None and key in self._packing.values():
                continue
            del self._waiting[connection]
            try:
                if entry is not None:
                    socket.send_fds(connection, [_HAVE + entry.digest], [entry.descriptor])
                else:
                    connection.send(_PACK)
                    self._packing[connection] = key
            except OSError:
                self._server.drop(connection)

    def _forget(self, connection: socket.socket) -> None:
        self._waiting.pop(connection, None)
        if self._packing.pop(connection, None) is not None:
            self._answer()


def fetch_or_pack(
    address: Path, key: bytes, num_bytes: int, pack: Callable[[mmap.mmap], bytes], timeout_s: float
) -> tuple[mmap.mmap, bytes]:
    """The weights of a key, mapped for reading, and their digest; packs them if nobody has.

    Args:
        address: of the store.
        key: DIGEST_BYTES that name the weights, whoever packs them.
        num_bytes: their size.
        pack: fills the memory and returns its digest of DIGEST_BYTES; keeps no reference to it.
        timeout_s: how long another process may pack.

    Raises:
        StartupError: the store cannot be reached, or does not answer in time.
        BaseException: what `pack` raises.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(address))
            check_peer(connection)
            connection.send(key)
            message, descriptors, _, _ = socket.recv_fds(connection, 1 + DIGEST_BYTES, 1)
            if message == _PACK:
                return _pack_and_share(connection, num_bytes, pack)
    except TimeoutError as error:
        raise StartupError(f"the weights were not packed within {timeout_s:g} seconds") from error
    except OSError as error:
        raise StartupError(f"the packed weights cannot be shared through {address}: {error}") from error
    if message[:1] != _HAVE or len(descriptors) != 1:
        raise StartupError(f"the store of packed weights at {address} has gone away")
    try:
        if not is_sealed(descriptors[0], _SEALS) or os.fstat(descriptors[0]).st_size != num_bytes:
            raise StartupError(f"the store of packed weights at {address} has something else under this model's key")
        return _map(descriptors[0], num_bytes), message[1:]
    finally:
        os.close(descriptors[0])


def _pack_and_share(
    connection: socket.socket, num_bytes: int, pack: Callable[[mmap.mmap], bytes]
) -> tuple[mmap.mmap, bytes]:
    descriptor = os.memfd_create("quire-weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        try:
            os.posix_fallocate(descriptor, 0, num_bytes)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                raise StartupError(f"the weights of {num_bytes} bytes do not fit in memory", field="model") from error
            raise
        memory = mmap.mmap(descriptor, num_bytes)
        digest = pack(memory)
        # Not with `with`: an error's traceback may hold views of the memory, and closing it then would hide the error.
        memory.close()
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        socket.send_fds(connection, [digest], [descriptor])
        return _map(descriptor, num_bytes), digest
    finally:
        os.close(descriptor)


def _map(descriptor: int, num_bytes: int) -> mmap.mmap:
    # Private and writable, as a sealed memfd cannot be mapped shared and writable and tensors want writable memory:
    # nobody writes, so the pages stay shared.
    return mmap.mmap(descriptor, num_bytes, flags=mmap.MAP_PRIVATE)
