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

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from quire.errors import KvPoolError

HASH_BYTES: Final = 32

_CONTENT: Final = struct.Struct("<QQ32s32s")
_NUMBER: Final = struct.Struct("<Q")
_LAST_USE: Final = struct.Struct("<Q")
_TAIL: Final = struct.Struct("<IQ")
_NO_KEY: Final = bytes(HASH_BYTES)
_TOKEN_BYTES: Final = 4
# Nobody counts so far.
_MAX_LAST_USE: Final = 2**63


def record_bytes(block_size: int) -> int:
    """Size of a record, a multiple of 8."""
    return -(-(_CONTENT.size + block_size * _TOKEN_BYTES + _TAIL.size) // 8) * 8


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
        self._num_content_bytes = _CONTENT.size + block_size * _TOKEN_BYTES
        if len(memory) % self._stride:
            raise KvPoolError(f"a journal of {len(memory)} bytes is not made of records of {self._stride}")
        self.num_blocks = len(memory) // self._stride

    def write(self, block_id: int, record: JournalRecord) -> None:
        """Says what a block holds. Whoever dies in it leaves a free block."""
        content = _CONTENT.pack(record.number, record.parent, record.hash, record.extra_key) + record.tokens
        whole = content + _TAIL.pack(zlib.crc32(content), record.last_use)
        start = block_id * self._stride
        # The number last: until then the block is free, whatever an older record has left there.
        self._memory[start + _NUMBER.size : start + len(whole)] = whole[_NUMBER.size :]
        _NUMBER.pack_into(self._memory, start, record.number)

    def set_last_use(self, block_id: int, last_use: int) -> None:
        """Of a block that has a record."""
        place = block_id * self._stride + self._num_content_bytes + _TAIL.size - _LAST_USE.size
        _LAST_USE.pack_into(self._memory, place, last_use)

    def clear(self, block_id: int) -> None:
        """Says that a block holds nothing, which is true whatever is written into it from now on."""
        _NUMBER.pack_into(self._memory, block_id * self._stride, 0)

    def wipe(self) -> None:
        """Clears all records."""
        for block_id in range(self.num_blocks):
            self.clear(block_id)

    def __contains__(self, block_id: int) -> bool:
        """Whether a block has a record, be it intact or not."""
        number: int
        (number,) = _NUMBER.unpack_from(self._memory, block_id * self._stride)
        return number != 0

    def read(self, block_id: int) -> JournalRecord | None:
        """What a block holds; None if it is free or its record is damaged."""
        if block_id not in self:
            return None
        start = block_id * self._stride
        content = bytes(self._memory[start : start + self._num_content_bytes])
        checksum, last_use = _TAIL.unpack_from(self._memory, start + self._num_content_bytes)
        if checksum != zlib.crc32(content):
            return None
        number, parent, hash_, extra_key = _CONTENT.unpack_from(content)
        key = b"" if extra_key == _NO_KEY else extra_key
        if last_use > _MAX_LAST_USE:  # damaged
            last_use = number
        return JournalRecord(number, parent, hash_, key, content[_CONTENT.size :], last_use)

    def records(self) -> Iterator[tuple[int, JournalRecord]]:
        """Block ids and intact records."""
        for block_id in range(self.num_blocks):
            if (record := self.read(block_id)) is not None:
                yield block_id, record
