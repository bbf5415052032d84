"""The format of a KV pool: what lies where, and the header page that says so.

    page 0            header: magic, layout version, sizes, epoch, boot id, fingerprint, state, cache groups, CRC
    page 1            journal: a record for each block (`kv_journal.py`)
    data_offset       segment of rank 0: block 0, block 1, …
                      segment of rank 1: …

Block ids are the same in every segment, and a block is contiguous within a segment: for each cache
group, for each layer,

    keys          [kv_heads, block_size, head_dim]
    values        the same
    key scales    float32 [kv_heads, block_size], if the group has scales (int8, FP8)
    value scales  the same

Scales come last, so that keys and values start where rows of whole cache lines do. Torch-free, since the scheduler
imports it.
"""

from __future__ import annotations

import enum
import mmap
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from quire.errors import KvPoolError
from quire.kv_journal import record_bytes

LAYOUT_VERSION: Final = 3
HEADER_BYTES: Final = 4096
FINGERPRINT_BYTES: Final = 32
MAGIC: Final = b"QUIREKV\0"

# magic, version, block_size, num_blocks, num_ranks, epoch, boot id, fingerprint, state, number of groups
_HEADER: Final = struct.Struct("<8sIIIIQ16s32sII")
_GROUP: Final = struct.Struct("<IIIII")
_CRC: Final = struct.Struct("<I")
# Where every version of the format has its own number.
_VERSION: Final = struct.Struct("<8sI")


@dataclass(frozen=True, slots=True)
class CacheGroupLayout:
    """Layers that share one block table per sequence."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    element_bytes: int
    # Of the scale that each token and head has, once for keys and once for values; 0: no scales.
    scale_bytes: int = 0

    def __post_init__(self) -> None:
        if self.scale_bytes and self.num_kv_heads * self.head_dim * self.element_bytes * 2 % self.scale_bytes:
            raise KvPoolError(f"scales of {self.scale_bytes} bytes would lie across their own boundaries: {self}")

    @property
    def bytes_per_token(self) -> int:
        """Keys, values and their scales of one token over all layers of the group."""
        return 2 * self.num_layers * self.num_kv_heads * (self.head_dim * self.element_bytes + self.scale_bytes)


@dataclass(frozen=True, slots=True)
class KvPoolLayout:
    """Everything that must agree between those who map the pool."""

    block_size: int
    num_blocks: int
    # 0: the blocks lie in memory of the executor, and the pool has their journal alone.
    num_ranks: int
    epoch: int
    fingerprint: bytes
    groups: tuple[CacheGroupLayout, ...]

    def __post_init__(self) -> None:
        if min(self.block_size, self.num_blocks, len(self.groups)) < 1 or self.num_ranks < 0:
            raise KvPoolError(f"a KV pool needs at least one token, block and cache group: {self}")
        if len(self.fingerprint) != FINGERPRINT_BYTES:
            raise KvPoolError(f"a fingerprint has {FINGERPRINT_BYTES} bytes, not {len(self.fingerprint)}")

    @property
    def block_bytes(self) -> int:
        return self.block_size * sum(group.bytes_per_token for group in self.groups)

    @property
    def journal_bytes(self) -> int:
        return self.num_blocks * record_bytes(self.block_size)

    @property
    def data_offset(self) -> int:
        """Where the segments begin, on a page's boundary."""
        return _whole_pages(HEADER_BYTES + self.journal_bytes)

    @property
    def segment_bytes(self) -> int:
        """Bytes of one rank's segment, rounded up to whole pages."""
        return _whole_pages(self.num_blocks * self.block_bytes)

    @property
    def total_bytes(self) -> int:
        return self.data_offset + self.num_ranks * self.segment_bytes

    def extents(self, first_block: int, end_block: int) -> Iterator[tuple[int, int]]:
        """Offset and size of what those blocks take, in each rank's segment."""
        for rank in range(self.num_ranks):
            start = self.data_offset + rank * self.segment_bytes
            yield start + first_block * self.block_bytes, (end_block - first_block) * self.block_bytes


class PoolState(enum.IntEnum):
    """What a pool's content is worth to whoever finds it."""

    # Everything since its header was written may be in memory alone: good for this boot of the machine.
    OPEN = 0
    # A file whose content is on the disk.
    CLEAN = 1
    # Somebody may still write it who must not: good for nothing.
    DISCARDED = 2


@dataclass(frozen=True, slots=True)
class KvPoolHeader:
    """The first page of a pool."""

    layout: KvPoolLayout
    state: PoolState
    boot_id: bytes

    def pack(self) -> bytes:
        layout = self.layout
        fields = _HEADER.pack(
            MAGIC,
            LAYOUT_VERSION,
            layout.block_size,
            layout.num_blocks,
            layout.num_ranks,
            layout.epoch,
            self.boot_id,
            layout.fingerprint,
            self.state,
            len(layout.groups),
        )
        for group in layout.groups:
            fields += _GROUP.pack(
                group.num_layers, group.num_kv_heads, group.head_dim, group.element_bytes, group.scale_bytes
            )
        fields += _CRC.pack(zlib.crc32(fields))
        return fields.ljust(HEADER_BYTES, b"\0")

    @classmethod
    def unpack(cls, header: bytes) -> KvPoolHeader:
        """Reads a header page. Raises KvPoolError for one that is damaged or of another version."""
        if len(header) < HEADER_BYTES:
            raise KvPoolError(f"the KV pool's header has {len(header)} bytes instead of {HEADER_BYTES}")
        version = find_version(header)
        if version is None:
            raise KvPoolError("not a KV pool: its first bytes are not a KV pool's magic")
        if version != LAYOUT_VERSION:
            raise KvPoolError(f"the KV pool has layout version {version}, this program reads {LAYOUT_VERSION}")
        _, _, block_size, num_blocks, num_ranks, epoch, boot, fingerprint, state, num_groups = _HEADER.unpack_from(
            header
        )
        end = _HEADER.size + num_groups * _GROUP.size
        if end + _CRC.size > HEADER_BYTES or _CRC.unpack_from(header, end) != (zlib.crc32(header[:end]),):
            raise KvPoolError("the KV pool's header is damaged: its checksum does not match")
        groups = tuple(
            CacheGroupLayout(*_GROUP.unpack_from(header, _HEADER.size + i * _GROUP.size)) for i in range(num_groups)
        )
        if state not in PoolState.__members__.values():
            raise KvPoolError(f"the KV pool is in state {state}, which this program does not know")
        layout = KvPoolLayout(block_size, num_blocks, num_ranks, epoch, fingerprint, groups)
        return cls(layout, PoolState(state), boot)


def find_version(header: bytes) -> int | None:
    """The layout version of what begins as a pool does; None for all else."""
    if len(header) < _VERSION.size or not header.startswith(MAGIC):
        return None
    version: int = _VERSION.unpack_from(header)[1]
    return version


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
