"""Messages between two processes of one host through shared memory: what a step costs beside the model.

`StepRings` is a sealed memfd with one ring for plans and one for results, and two eventfds for each ring:

    page 0      header: magic, version, capacity, CRC; at COUNTERS_OFFSET the executor's counters (`step_counters.py`)
    page 1 …    the circle of plans, capacity bytes: u32 length, message, u32 length, message, …
                the circle of results, likewise
    written     eventfd: bytes the writer has put in and the reader has not taken note of
    freed       eventfd: bytes the reader has taken out and the writer has not taken note of

No counter in the shared memory says what may be read. Python has no memory fences, so a counter read there could run
ahead of the bytes it counts; an eventfd's value changes hands under a lock of the kernel, which orders everything
written before it on every architecture. The writer copies, then adds to `written`; the reader takes that value and
copies exactly so many bytes out, then adds them to `freed`; the writer overwrites no byte before it has taken note of
that. Both eventfds wake whoever polls them: nobody spins. The counters in the header page are for watching only.

The circle is a stream of bytes, like a pipe: a message that is larger than the room there is goes in piece by piece,
and its writer waits for `freed` in between. The default capacity holds the two plans in flight of usual batches many
times over (25 bytes per sequence and 4 per new token of a prompt), so that hardly anybody ever waits; the waiting is
for the step that starts hundreds of long prompts. To save a system call per message the reader gives room back by the
quarter of the circle. The writer still cannot wait forever: it waits only once the circle is full, of which less than
a quarter is room not yet given back, and the rest is bytes that will wake the reader.

A pair belongs to one scheduler and one executor and is not used again once either has ended.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from quire import handover
from quire.errors import RingError
from quire.rpc import MAX_MESSAGE_BYTES
from quire.step_counters import COUNTERS_BYTES, StepCounters

VERSION: Final = 2
DEFAULT_CAPACITY: Final = 1 << 20
# Of the counters in the memfd "quire-step-rings", on a cache line of their own.
COUNTERS_OFFSET: Final = 64

_MAGIC: Final = b"QUIRERNG"
# magic, version, capacity of each circle
_HEADER: Final = struct.Struct("<8sII")
_CRC: Final = struct.Struct("<I")
_HEADER_BYTES: Final = mmap.PAGESIZE
_LENGTH: Final = struct.Struct("<I")
# Without these a peer could cut the memory short, and whoever maps it would die of SIGBUS.
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
# The memory, and two eventfds for each circle.
_NUM_DESCRIPTORS: Final = 5


@dataclass(frozen=True, slots=True)
class Ring:
    """One direction; its two ends are a `RingWriter` and a `RingReader`. Owned by `StepRings`."""

    memory: memoryview
    written_fd: int
    freed_fd: int

    @property
    def capacity(self) -> int:
        return len(self.memory)


class RingWriter:
    """Puts messages in, one after the other. Not thread-safe."""

    def __init__(self, ring: Ring) -> None:
        self._memory = ring.memory
        self._capacity = ring.capacity
        self._written_fd = ring.written_fd
        # Readable when there may be room.
        self.freed_fd = ring.freed_fd
        self._position = 0
        self._free = ring.capacity
        self._rest: bytes | memoryview = b""

    def send(self, message: bytes) -> bool:
        """Puts a message in. False if only a part of it fits: call `resume` when `freed_fd` is readable.

        Raises RingError for a message that is too large, or that comes before the one before it is in.
        """
        if self._rest:
            raise RingError("a message was sent while another one waits for room in the ring")
        if len(message) > MAX_MESSAGE_BYTES:
            raise RingError(f"a message of {len(message)} bytes is larger than {MAX_MESSAGE_BYTES}")
        self._rest = _LENGTH.pack(len(message)) + message
        return self.resume()

    def resume(self) -> bool:
        """Puts in what fits of the rest of the message. True once that was all."""
        size = len(self._rest)
        if size > self._free:
            self._free += _take(self.freed_fd)
            if self._free > self._capacity:
                raise RingError("the reader of a ring gave back more room than there is")
            size = min(size, self._free)
        if size:
            self._put(self._rest[:size])
            self._rest = memoryview(self._rest)[size:]
            self._free -= size
            os.eventfd_write(self._written_fd, size)
        return not self._rest

    def _put(self, piece: bytes | memoryview) -> None:
        start = self._position
        end = start + len(piece)
        if end <= self._capacity:
            self._memory[start:end] = piece
        else:
            until_end = self._capacity - start
            self._memory[start:] = piece[:until_end]
            self._memory[: end - self._capacity] = piece[until_end:]
        self._position = end % self._capacity


class RingReader:
    """Takes messages out, in order. Not thread-safe."""

    def __init__(self, ring: Ring) -> None:
        self._memory = ring.memory
        self._capacity = ring.capacity
        # Readable when there is something to receive.
        self.written_fd = ring.written_fd
        self._freed_fd = ring.freed_fd
        self._position = 0
        # Bytes taken out whose room was not given back yet.
        self._owed = 0
        # Bytes of messages that are not complete.
        self._partial = bytearray()

    def receive(self) -> list[bytes]:
        """The messages that have become complete since the last call. Never waits.

        Raises RingError when the writer does not keep to the protocol.
        """
        count = _take(self.written_fd)
        if count > self._capacity - self._owed:
            raise RingError("the writer of a ring put in more than there was room for")
        self._partial += self._get(count)
        self._owed += count
        if self._owed >= self._capacity // 4:
            os.eventfd_write(self._freed_fd, self._owed)
            self._owed = 0
        return self._split()

    def _get(self, count: int) -> bytes:
        start = self._position
        end = start + count
        self._position = end % self._capacity
        if end <= self._capacity:
            return self._memory[start:end].tobytes()
        return self._memory[start:].tobytes() + self._memory[: self._position].tobytes()

    def _split(self) -> list[bytes]:
        """Cuts the messages that are complete off the bytes received so far."""
        messages = []
        start, size = 0, len(self._partial)
        while size - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._partial, start)
            if length > MAX_MESSAGE_BYTES:
                raise RingError(f"a ring announces a message of {length} bytes, more than {MAX_MESSAGE_BYTES}")
            end = start + _LENGTH.size + length
            if end > size:
                break
            messages.append(bytes(self._partial[start + _LENGTH.size : end]))
            start = end
        del self._partial[:start]
        return messages


class StepRings:
    """The rings between a scheduler and an executor, and the owner of their descriptors. A context manager."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        """Takes over the descriptors: of the memory, then `written` and `freed` of plans and of results.

        Raises RingError if the memory is not a pair of rings.
        """
        self.descriptors = tuple(descriptors)
        memory_fd, *eventfds = descriptors
        try:
            capacity = _read_capacity(memory_fd)
            self._map = mmap.mmap(memory_fd, _HEADER_BYTES + 2 * capacity)
        except BaseException:
            _close_all(self.descriptors)
            raise
        memory = memoryview(self._map)
        # Written by the executor alone.
        self.counters = StepCounters(memory[COUNTERS_OFFSET : COUNTERS_OFFSET + COUNTERS_BYTES])
        circles = memory[_HEADER_BYTES:]
        self.plans = Ring(circles[:capacity], *eventfds[:2])
        self.results = Ring(circles[capacity:], *eventfds[2:])

    @classmethod
    def create(cls, capacity: int = DEFAULT_CAPACITY) -> StepRings:
        """On the scheduler's side: empty rings, with all pages allocated."""
        descriptors = [os.memfd_create("quire-step-rings", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)]
        try:
            _format(descriptors[0], capacity)
            while len(descriptors) < _NUM_DESCRIPTORS:
                descriptors.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        except BaseException:
            _close_all(descriptors)
            raise
        return cls(descriptors)

    @classmethod
    def attach(cls, address: Path) -> StepRings:
        """On the executor's side: those that are offered at a socket. Raises RingError."""
        try:
            return cls(handover.fetch(address, _NUM_DESCRIPTORS))
        except OSError as error:
            raise RingError(f"no rings are handed over at {address}: {error}") from error

    def close(self) -> None:
        """Unmaps the memory, which ends when the other side has done so too."""
        self.plans.memory.release()
        self.results.memory.release()
        self.counters.release()
        self._map.close()
        _close_all(self.descriptors)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _format(memory_fd: int, capacity: int) -> None:
    """Makes an empty memfd a pair of rings."""
    os.posix_fallocate(memory_fd, 0, _HEADER_BYTES + 2 * capacity)
    fcntl.fcntl(memory_fd, fcntl.F_ADD_SEALS, _SEALS)
    header = _HEADER.pack(_MAGIC, VERSION, capacity)
    os.pwrite(memory_fd, header + _CRC.pack(zlib.crc32(header)), 0)


def _read_capacity(memory_fd: int) -> int:
    """The capacity of each circle. Raises RingError for memory that is anything else, or that could shrink."""
    header = os.pread(memory_fd, _HEADER.size + _CRC.size, 0).ljust(_HEADER.size + _CRC.size, b"\0")
    magic, version, capacity = _HEADER.unpack_from(header)
    if magic != _MAGIC:
        raise RingError("not a pair of rings: its first bytes are not their magic")
    if version != VERSION:
        raise RingError(f"the rings have version {version}, this program knows {VERSION}")
    if _CRC.unpack_from(header, _HEADER.size) != (zlib.crc32(header[: _HEADER.size]),):
        raise RingError("the header of the rings is damaged: its checksum does not match")
    if capacity < 1 or os.fstat(memory_fd).st_size != _HEADER_BYTES + 2 * capacity:
        raise RingError(f"the rings' memory is not of the size that their capacity of {capacity} bytes needs")
    if fcntl.fcntl(memory_fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise RingError("the rings' memory is not sealed: it could shrink under us")
    return int(capacity)


def _take(eventfd: int) -> int:
    """An eventfd's value, which becomes zero."""
    try:
        return os.eventfd_read(eventfd)
    except BlockingIOError:
        return 0


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
