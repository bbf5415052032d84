"""An executor's side: the memory of a KV pool that outlives it."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Final, Never

from quire.cuda_driver import CudaDriver, CudaError
from quire.device_pool.memory import MappedMemory
from quire.device_pool.protocol import REPLY_BYTES, Outcome, PoolKey, Reply, Request, Verb
from quire.errors import KvPoolError
from quire.peer_credentials import check_peer

# The holder may have to be started, and initialising the driver takes seconds on a large machine.
_TIMEOUT_S: Final = 60.0


class NoHolderError(KvPoolError):
    """Nobody holds device memory here: the holder cannot be reached, or the platform cannot export memory."""


def wake(address: Path) -> None:
    """Has the holder started, if it is not, while something else goes on here."""
    # Whether it can be reached is said when it is needed.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.setblocking(False)
        connection.connect(str(address))


class HolderClient:
    """Asks the holder at an address for memory on one device."""

    def __init__(self, address: Path, driver: CudaDriver, device: int) -> None:
        """Raises NoHolderError where the device's memory cannot be exported, and CudaError."""
        if not driver.can_export(device):
            raise NoHolderError("this platform cannot export device memory")
        self._address = address
        self._driver = driver
        self._device = device
        self._uuid = driver.uuid(device)

    def attach(self, epoch: int, num_bytes: int, *, is_new: bool = False) -> tuple[MappedMemory, bool]:
        """The memory of the pool of this epoch, and whether it holds what was last written to it; else it is zeros.

        Args:
            epoch: names the pool.
            num_bytes: its size.
            is_new: whether it must be other memory than a pool of this epoch had before.

        Raises NoHolderError; KvPoolError where it does not fit or the pool of this epoch is another one; CudaError.
        """
        pool = PoolKey(epoch, num_bytes, self._uuid)
        if not is_new and (memory := self._take(Verb.FETCH, pool)) is not None:
            return memory, True
        memory = self._make(pool)
        try:
            memory.clear()
            reply, _ = self._call(Verb.KEEP, pool)
        except BaseException:
            self._drop(pool)
            raise
        if reply.outcome is not Outcome.DONE:
            raise KvPoolError(f"the pool of epoch {epoch} was replaced while it was cleared")
        return memory, False

    def held_bytes(self) -> int:
        """Of the device's memory, those that a pool has which the next MAKE replaces. Raises NoHolderError."""
        reply, _ = self._call(Verb.SIZE, PoolKey(0, 0, self._uuid))
        return reply.size

    def _make(self, pool: PoolKey) -> MappedMemory:
        try:
            memory = self._take(Verb.MAKE, pool)
        except CudaError:
            self._drop(pool)
            raise
        assert memory is not None  # MAKE is not answered by NONE
        return memory

    def _take(self, verb: Verb, pool: PoolKey) -> MappedMemory | None:
        reply, descriptor = self._call(verb, pool)
        if reply.outcome is Outcome.NONE:
            return None
        if descriptor is None:
            _refuse(reply)
        try:
            return MappedMemory(self._driver, self._device, descriptor, reply.size, pool.size)
        finally:
            os.close(descriptor)

    def _drop(self, pool: PoolKey) -> None:
        """Best effort, on the way out with an error that says more."""
        with contextlib.suppress(NoHolderError):
            self._call(Verb.DROP, pool)

    def _call(self, verb: Verb, pool: PoolKey) -> tuple[Reply, int | None]:
        request = Request(verb, pool).pack()
        try:
            try:
                return _exchange(self._address, request)
            except ConnectionError:  # the holder died; another one is started for the next who connects
                return _exchange(self._address, request)
        except (OSError, ValueError) as error:
            raise NoHolderError(f"the holder of device memory at {self._address} cannot be reached: {error}") from error


def _exchange(address: Path, request: bytes) -> tuple[Reply, int | None]:
    """Raises OSError, and ValueError for an answer that is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(_TIMEOUT_S)
        connection.connect(str(address))
        check_peer(connection)
        connection.send(request)
        message, descriptors, _, _ = socket.recv_fds(connection, REPLY_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
    try:
        if not message:
            raise ConnectionResetError("it has closed the connection")
        reply = Reply.unpack(message)
        if bool(descriptors) != (reply.outcome is Outcome.GIVEN):
            raise ValueError(f"{reply.outcome.name} with {len(descriptors)} descriptors")
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return reply, descriptors[0] if descriptors else None


def _refuse(reply: Reply) -> Never:
    match reply.outcome:
        case Outcome.UNSUPPORTED:
            raise NoHolderError(f"this platform cannot export device memory: {reply.reason}")
        case Outcome.NO_MEMORY:
            message = f"the KV pool does not fit the device's memory: {reply.reason}; lower --kv-cache-memory"
            raise KvPoolError(message, field="kv_cache_memory")
        case _:
            raise KvPoolError(f"the holder of device memory refuses: {reply.reason or reply.outcome.name}")
