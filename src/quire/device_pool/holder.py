"""What the process holds: at most one allocation."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from typing import Final

from quire.cuda_driver import OUT_OF_MEMORY, CudaDriver, CudaError
from quire.device_pool.protocol import REQUEST_BYTES, Outcome, PoolKey, Reply, Request, Verb
from quire.packet_server import PacketServer

logger = logging.getLogger(__name__)

# So that a longer packet, which is cut off, is not taken for a request.
MAX_PACKET_BYTES: Final = REQUEST_BYTES + 1


@dataclass(slots=True)
class _Held:
    key: PoolKey
    handle: int
    # Of the allocation: at least the key's.
    size: int
    # Whether its memory was cleared.
    is_kept: bool = False


class PoolHolder:
    """Answers executors. Called from one thread at a time."""

    def __init__(self, driver: CudaDriver) -> None:
        self._driver = driver
        self._held: _Held | None = None

    def close(self) -> None:
        """Lets go of the pool; those who have mapped it keep it."""
        self._let_go()

    def serve(self, connection: socket.socket, message: bytes, descriptors: list[int]) -> None:
        """Answers a packet, and closes the descriptors that came with it. Raises OSError for a peer that has left."""
        for unasked in descriptors:
            os.close(unasked)
        reply, descriptor = self._answer(message)
        try:
            socket.send_fds(connection, [reply.pack()], [] if descriptor is None else [descriptor])
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _answer(self, message: bytes) -> tuple[Reply, int | None]:
        try:
            request = Request.unpack(message)
        except ValueError as error:
            return Reply(Outcome.REFUSED, reason=str(error)), None
        try:
            return self._obey(request)
        except CudaError as error:
            logger.warning("%s of a KV pool of %d bytes: %s", request.verb.name, request.pool.size, error.message)
            outcome = Outcome.REFUSED
            if error.code == OUT_OF_MEMORY:
                outcome = Outcome.NO_MEMORY
            elif error.is_unsupported:
                outcome = Outcome.UNSUPPORTED
            return Reply(outcome, reason=error.message), None

    def _obey(self, request: Request) -> tuple[Reply, int | None]:
        key = request.pool
        held = self._held if self._held is not None and self._held.key.epoch == key.epoch else None
        match request.verb:
            case Verb.MAKE:
                return self._make(key)
            case Verb.SIZE:
                on_device = self._held is not None and self._held.key.uuid == key.uuid
                return Reply(Outcome.DONE, self._held.size if on_device and self._held is not None else 0), None
            case _ if held is None:
                return Reply(Outcome.NONE), None
            case _ if held.key != key:
                return Reply(Outcome.REFUSED, reason=_difference(held.key, key)), None
            case Verb.FETCH if not held.is_kept:
                return Reply(Outcome.NONE), None
            case Verb.FETCH:
                return self._give(held)
            case Verb.KEEP:
                held.is_kept = True
                return Reply(Outcome.DONE, held.size), None
            case Verb.DROP:
                self._let_go()
                return Reply(Outcome.DONE), None

    def _make(self, key: PoolKey) -> tuple[Reply, int | None]:
        device = self._driver.find(key.uuid)
        granularity = self._driver.granularity(device)
        # First, since a device may not have room for two pools.
        self._let_go()
        size = -(-key.size // granularity) * granularity
        self._held = _Held(key, self._driver.create(device, size), size)
        try:
            given = self._give(self._held)
        except CudaError:
            self._let_go()
            raise
        logger.info("a KV pool of %d bytes on device %s, epoch %d", size, key.uuid.hex(), key.epoch)
        return given

    def _give(self, held: _Held) -> tuple[Reply, int]:
        return Reply(Outcome.GIVEN, held.size), self._driver.export_handle(held.handle)

    def _let_go(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            self._driver.release(held.handle)


def serve_at(listener: socket.socket, holder: PoolHolder) -> PacketServer:
    """Has the holder answer those who connect, in a thread of its own, until the server is closed."""

    def answer(connection: socket.socket, message: bytes, descriptors: list[int]) -> None:
        try:
            holder.serve(connection, message, descriptors)
        except OSError:  # a peer that left already
            server.drop(connection)

    server = PacketServer(listener, "device-pool", MAX_PACKET_BYTES, answer, lambda connection: None)
    return server


def _difference(held: PoolKey, asked: PoolKey) -> str:
    if held.uuid != asked.uuid:
        return f"the KV pool of epoch {held.epoch} is on device {held.uuid.hex()}, not {asked.uuid.hex()}"
    return f"the KV pool of epoch {held.epoch} has {held.size} bytes, not {asked.size}"
