"""The KV pool: one piece of shared memory that the scheduler creates and executors attach.

    page 0            header: magic, layout version, sizes, epoch, boot id, fingerprint, state, cache groups, CRC
    page 1            journal: a record for each block (`kv_journal.py`)
    data_offset       segment of rank 0: block 0, block 1, …
                      segment of rank 1: …

Block ids are the same in every segment, and a block is contiguous within a segment: for each cache
group, for each layer,

    keys          [kv_heads, block_size, head_dim]
    values        the same
    key scales    float32 [kv_heads, block_size], if the group has scales (int8)
    value scales  the same

Scales come last, so that keys and values start where rows of whole cache lines do. Two homes: a memfd whose
descriptor is handed over (`handover.py`), or a file (`pool_file.py`), which outlives all processes. Not `multiprocessing.shared_memory`: its resource tracker unlinks what other processes still use.

Torch-free, since the scheduler imports it.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from quire import handover
from quire.errors import KvPoolError
from quire.kv_journal import KvJournal, record_bytes

LAYOUT_VERSION: Final = 3
HEADER_BYTES: Final = 4096
FINGERPRINT_BYTES: Final = 32
MAGIC: Final = b"QUIREKV\0"
# Of a memfd that nobody can shrink or grow any more.
FIXED_SIZE_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

# magic, version, block_size, num_blocks, num_ranks, epoch, boot id, fingerprint, state, number of groups
_HEADER: Final = struct.Struct("<8sIIIIQ16s32sII")
_GROUP: Final = struct.Struct("<IIIII")
_CRC: Final = struct.Struct("<I")


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
    num_ranks: int
    epoch: int
    fingerprint: bytes
    groups: tuple[CacheGroupLayout, ...]

    def __post_init__(self) -> None:
        if min(self.block_size, self.num_blocks, self.num_ranks, len(self.groups)) < 1:
            raise KvPoolError(f"a KV pool needs at least one token, block, rank and cache group: {self}")
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
        magic, version, block_size, num_blocks, num_ranks, epoch, boot, fingerprint, state, num_groups = (
            _HEADER.unpack_from(header)
        )
        if magic != MAGIC:
            raise KvPoolError("not a KV pool: its first bytes are not a KV pool's magic")
        if version != LAYOUT_VERSION:
            raise KvPoolError(f"the KV pool has layout version {version}, this program reads {LAYOUT_VERSION}")
        end = _HEADER.size + num_groups * _GROUP.size
        if end + _CRC.size > HEADER_BYTES or _CRC.unpack_from(header, end) != (zlib.crc32(header[:end]),):
            raise KvPoolError("the KV pool's header is damaged: its checksum does not match")
        groups = tuple(
            CacheGroupLayout(*_GROUP.unpack_from(header, _HEADER.size + i * _GROUP.size)) for i in range(num_groups)
        )
        layout = KvPoolLayout(block_size, num_blocks, num_ranks, epoch, fingerprint, groups)
        return cls(layout, PoolState(state), boot)


class KvPool:
    """A mapped KV pool. Closing it unmaps; the memory lives as long as anyone holds it."""

    def __init__(self, fd: int) -> None:
        """Takes over `fd`. Raises KvPoolError if it is no pool, or a damaged one."""
        self.fd = fd
        try:
            self.header = KvPoolHeader.unpack(os.pread(fd, HEADER_BYTES, 0))
            self.layout = self.header.layout
            size = os.fstat(fd).st_size
            if size != self.layout.total_bytes:
                raise KvPoolError(f"the KV pool has {size} bytes, its header says {self.layout.total_bytes}")
            self._map = mmap.mmap(fd, size)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def create_memfd(cls, layout: KvPoolLayout, num_blocks: int | None = None) -> KvPool:
        """A pool in anonymous shared memory of fixed size.

        Pages are allocated for the first `num_blocks` blocks (all, if None); `allocate` adds others.
        """
        fd = os.memfd_create("quire-kv-pool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, layout.total_bytes)
            allocate_pages(fd, 0, layout.data_offset, "in memory")
            for start, size in layout.extents(0, layout.num_blocks if num_blocks is None else num_blocks):
                allocate_pages(fd, start, size, "in memory")
            write_header(fd, layout)
            # A pool that cannot shrink cannot raise SIGBUS in those who map it.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, FIXED_SIZE_SEALS)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd)

    @classmethod
    def attach_handover(cls, address: Path, timeout_s: float = 10.0) -> KvPool:
        """Maps the pool whose descriptor is offered at a socket. Raises KvPoolError if there is none."""
        try:
            (descriptor,) = handover.fetch(address, 1, timeout_s)
        except OSError as error:
            raise KvPoolError(f"no KV pool is handed over at {address}: {error}") from error
        return cls(descriptor)

    def segment(self, rank: int) -> memoryview:
        """The writable bytes of a rank's blocks: num_blocks × block_bytes."""
        if not 0 <= rank < self.layout.num_ranks:
            raise KvPoolError(f"the KV pool has {self.layout.num_ranks} ranks, there is no rank {rank}")
        start = self.layout.data_offset + rank * self.layout.segment_bytes
        return memoryview(self._map)[start : start + self.layout.num_blocks * self.layout.block_bytes]

    def journal(self) -> KvJournal:
        """The records of its blocks, for the scheduler alone."""
        memory = memoryview(self._map)[HEADER_BYTES : HEADER_BYTES + self.layout.journal_bytes]
        return KvJournal(memory, self.layout.block_size)

    def allocate(self, first_block: int, end_block: int) -> None:
        """Allocates the pages of blocks; the kernel clears some GB a second. Raises KvPoolError if there are none."""
        for start, size in self.layout.extents(first_block, end_block):
            allocate_pages(self.fd, start, size, "in memory")

    def check_content(self) -> None:
        """Raises KvPoolError if what the pool holds is not to be trusted, whatever its journal says."""
        if self.header.state is PoolState.DISCARDED:
            raise KvPoolError("it was discarded, as a process that could not be ended may still write it")
        if self.header.state is not PoolState.CLEAN and self.header.boot_id != boot_id():
            raise KvPoolError("it was in use when the machine went down")

    def mark(self, state: PoolState) -> None:
        """Says what the content is worth from now on; when it returns, a file says so on the disk too.

        CLEAN first writes everything to the disk. Nothing follows DISCARDED.
        """
        if self.header.state is PoolState.DISCARDED:
            return
        if state is PoolState.CLEAN:
            self._map.flush()
        self.header = KvPoolHeader(self.layout, state, boot_id())
        self._map[:HEADER_BYTES] = self.header.pack()
        self._map.flush(0, HEADER_BYTES)

    def discard(self) -> None:
        """Makes the next scheduler make another pool: someone whose death cannot be proved may still write this one."""
        self.mark(PoolState.DISCARDED)

    def close(self) -> None:
        """Unmaps the pool. What is still in use of it (by a tensor or a journal) keeps its mapping alive."""
        with contextlib.suppress(BufferError):
            self._map.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> KvPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def boot_id() -> bytes:
    """The 16 bytes that name this boot of the machine."""
    return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))


def write_header(fd: int, layout: KvPoolLayout) -> None:
    """Makes a new pool of memory or a file."""
    os.pwrite(fd, KvPoolHeader(layout, PoolState.OPEN, boot_id()).pack(), 0)


def allocate_pages(fd: int, start: int, size: int, where: str) -> None:
    """Raises KvPoolError where there are not so many."""
    try:
        os.posix_fallocate(fd, start, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EDQUOT):
            raise KvPoolError(
                f"the KV pool does not fit {where}, {size} bytes more: {error.strerror}; lower --kv-cache-memory",
                field="kv_cache_memory",
            ) from error
        raise


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
