"""Messages between executors and the holder: one packet each, with at most one descriptor."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final, Self

from quire.cuda_driver import UUID_BYTES

# verb, epoch, size, UUID of the device
_REQUEST: Final = struct.Struct(f"<cQQ{UUID_BYTES}s")
REQUEST_BYTES: Final = _REQUEST.size
# outcome, size; then a reason
_REPLY: Final = struct.Struct("<cQ")
REPLY_BYTES: Final = _REPLY.size + 1024


class Verb(bytes, enum.Enum):
    """What is asked for."""

    # A descriptor of the pool of this epoch, if it is held and its memory was cleared.
    FETCH = b"F"
    # A new pool, whatever is held: a descriptor of its memory, which is not cleared.
    MAKE = b"M"
    # To hold the pool of this epoch for those who FETCH it: it is cleared.
    KEEP = b"K"
    # To let go of the pool of this epoch.
    DROP = b"D"
    # How many bytes are held on the device.
    SIZE = b"S"


class Outcome(bytes, enum.Enum):
    """What came of it."""

    # A descriptor comes with it, and the size of its allocation.
    GIVEN = b"G"
    # There is no such pool.
    NONE = b"N"
    # As it was asked; the size of what is held on the device.
    DONE = b"D"
    # Asked of the wrong one, or for the wrong thing.
    REFUSED = b"R"
    # The platform cannot export device memory.
    UNSUPPORTED = b"U"
    NO_MEMORY = b"O"


@dataclass(frozen=True, slots=True)
class PoolKey:
    """A pool: its epoch names it, and what it must be like."""

    epoch: int
    # Bytes that it needs at least.
    size: int
    # Of the device, 16 bytes.
    uuid: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """To the holder."""

    verb: Verb
    pool: PoolKey

    def pack(self) -> bytes:
        return _REQUEST.pack(self.verb, self.pool.epoch, self.pool.size, self.pool.uuid)

    @classmethod
    def unpack(cls, message: bytes) -> Self:
        """Raises ValueError for what is none."""
        if len(message) != _REQUEST.size:
            raise ValueError(f"a request of {len(message)} bytes, not {_REQUEST.size}")
        verb, epoch, size, uuid = _REQUEST.unpack(message)
        return cls(Verb(verb), PoolKey(epoch, size, uuid))


@dataclass(frozen=True, slots=True)
class Reply:
    """From the holder."""

    outcome: Outcome
    # Of the allocation, in bytes.
    size: int = 0
    reason: str = ""

    def pack(self) -> bytes:
        text = self.reason.encode()[: REPLY_BYTES - _REPLY.size]
        return _REPLY.pack(self.outcome, self.size) + text

    @classmethod
    def unpack(cls, message: bytes) -> Self:
        """Raises ValueError for what is none."""
        if len(message) < _REPLY.size:
            raise ValueError(f"a reply of {len(message)} bytes")
        outcome, size = _REPLY.unpack_from(message)
        return cls(Outcome(outcome), size, message[_REPLY.size :].decode(errors="replace"))
