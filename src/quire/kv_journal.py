"""The journal of a KV pool: what each block holds, for a scheduler that starts after this one.

One record of fixed size per block, in the pool between its header and its data:

    number      u64                   names this content, and no other that the pool ever had; 0: the block is free
    parent      u64                   the number of the content that it continues; 0: it begins a sequence
    hash        32 bytes              the chained hash that the prefix cache knows it by
    extra key   32 bytes              a digest, or zeros where there is none
    tokens      u32 [block_size]
    checksum    u32                   CRC-32 of all of the above
    last use    u64                   for LRU order; outside the checksum, so that it can be set alone

The scheduler is the only writer. It writes a record when the content is complete and clears it before anyone may write
the block, so a record that is intact speaks the truth whenever its writer dies: what a dying writer leaves half
written fails the checksum, and means a free block. A parent is named by its number and not by its hash, as the prefix
cache knows parents by identity: not even a collision connects two prefixes.

Torch-free, since the scheduler imports it.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from quire.errors import KvPoolError

HASH_BYTES: Final = 32

_NUMBER: Final = struct.Struct("<Q")
_LAST_USE: Final = struct.Struct("<Q")
_NO_KEY: Final = bytes(HASH_BYTES)
# Nobody counts so far.
_MAX_LAST_USE: Final = 2**63


def chain_hash(parent: bytes, tokens: bytes, extra_key: bytes) -> bytes:
    """The 32-byte name of a block's content; `parent` is empty for a sequence's first block."""
    return hashlib.sha256(parent + tokens + extra_key).digest()


def record_bytes(block_size: int) -> int:
    """Size of a record, a multiple of 8."""
    return -(-(_content(block_size).size + struct.calcsize("<IQ")) // 8) * 8


def _content(block_size: int) -> struct.Struct:
    """What the checksum covers: number, parent, hash, extra key, tokens."""
    return struct.Struct(f"<QQ{HASH_BYTES}s{HASH_BYTES}s{4 * block_size}s")


@dataclass(frozen=True, slots=True)
class JournalRecord:
    """What a block holds. `extra_key` is empty or has HASH_BYTES."""

    number: int
    parent: int
    hash: bytes
    extra_key: bytes
    tokens: bytes
    last_use: int


class KvJournal:
    """Reads and writes records in a pool's memory."""

    def __init__(self, memory: memoryview, block_size: int) -> None:
        """`memory` is the pool's: num_blocks × `record_bytes(block_size)`, writable."""
        self._memory = memory
        self._stride = record_bytes(block_size)
        self._content = _content(block_size)
        # All but the number, and with checksum and last use.
        self._rest = struct.Struct(f"<Q{HASH_BYTES}s{HASH_BYTES}s{4 * block_size}sIQ")
        if len(memory) % self._stride:
            raise KvPoolError(f"a journal of {len(memory)} bytes is not made of records of {self._stride}")
        self.num_blocks = len(memory) // self._stride

    def write(self, block_id: int, number: int, parent: int, hash_: bytes, extra_key: bytes, tokens: bytes) -> None:
        """Says what a block holds, and that it was used just now. Whoever dies in it leaves a free block."""
        checksum = zlib.crc32(self._content.pack(number, parent, hash_, extra_key, tokens))
        start = block_id * self._stride
        # The number last: until then the block is free, whatever an older record has left there.
        self._rest.pack_into(self._memory, start + _NUMBER.size, parent, hash_, extra_key, tokens, checksum, number)
        _NUMBER.pack_into(self._memory, start, number)

    def set_last_use(self, block_id: int, last_use: int) -> None:
        """Of a block that has a record."""
        place = block_id * self._stride + _NUMBER.size + self._rest.size - _LAST_USE.size
        _LAST_USE.pack_into(self._memory, place, last_use)

    def clear(self, block_id: int) -> None:
        """Says that a block holds nothing, which is true whatever is written into it from now on."""
        _NUMBER.pack_into(self._memory, block_id * self._stride, 0)

    def wipe(self) -> None:
        """Clears all records."""
        for block_id in range(self.num_blocks):
            self.clear(block_id)

    def number(self, block_id: int) -> int:
        """The number in a block's record, be that intact or not; 0 if it has none."""
        number: int
        (number,) = _NUMBER.unpack_from(self._memory, block_id * self._stride)
        return number

    def __contains__(self, block_id: int) -> bool:
        return self.number(block_id) != 0

    def read(self, block_id: int) -> JournalRecord | None:
        """What a block holds; None if it is free or its record is damaged."""
        if not (number := self.number(block_id)):
            return None
        start = block_id * self._stride
        parent, hash_, extra_key, tokens, checksum, last_use = self._rest.unpack_from(
            self._memory, start + _NUMBER.size
        )
        if checksum != zlib.crc32(self._memory[start : start + self._content.size]):
            return None
        key = b"" if extra_key == _NO_KEY else extra_key
        if last_use > _MAX_LAST_USE:  # damaged
            last_use = number
        return JournalRecord(number, parent, hash_, key, tokens, last_use)

    def records(self) -> Iterator[tuple[int, JournalRecord]]:
        """Block ids and intact records."""
        for block_id in range(self.num_blocks):
            if (record := self.read(block_id)) is not None:
                yield block_id, record
