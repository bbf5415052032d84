"""The KV pool: one piece of shared memory that the scheduler creates and executors attach.

    page 0            header: magic, layout version, sizes, epoch, boot id, fingerprint, cache groups, CRC
    data_offset       segment of rank 0: block 0, block 1, …
                      segment of rank 1: …

Block ids are the same in every segment, and a block is contiguous within a segment: for each cache
group, for each layer,

    keys          [kv_heads, block_size, head_dim]
    values        the same
    key scales    float32 [kv_heads, block_size], if the group has scales (int8)
    value scales  the same

Scales come last, so that keys and values start where rows of whole cache lines do. Two homes: a memfd whose
descriptor is handed over (`handover.py`), or a file, which can be inspected from outside.
Not `multiprocessing.shared_memory`: its resource tracker unlinks what other processes still use.

Torch-free, since the scheduler imports it.
"""

from __future__ import annotations

import contextlib
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

LAYOUT_VERSION: Final = 2
HEADER_BYTES: Final = 4096
FINGERPRINT_BYTES: Final = 32

_MAGIC: Final = b"QUIREKV\0"
# magic, version, block_size, num_blocks, num_ranks, epoch, boot id, fingerprint, number of groups
_HEADER: Final = struct.Struct("<8sIIIIQ16s32sI")
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
    def segment_bytes(self) -> int:
        """Bytes of one rank's segment, rounded up to whole pages."""
        return -(-self.num_blocks * self.block_bytes // mmap.PAGESIZE) * mmap.PAGESIZE

    @property
    def total_bytes(self) -> int:
        return HEADER_BYTES + self.num_ranks * self.segment_bytes

    def extents(self, first_block: int, end_block: int) -> Iterator[tuple[int, int]]:
        """Offset and size of what those blocks take, in each rank's segment."""
        for rank in range(self.num_ranks):
            start = HEADER_BYTES + rank * self.segment_bytes
            yield start + first_block * self.block_bytes, (end_block - first_block) * self.block_bytes

    def pack(self) -> bytes:
        """The header page."""
        fields = _HEADER.pack(
            _MAGIC,
            LAYOUT_VERSION,
            self.block_size,
            self.num_blocks,
            self.num_ranks,
            self.epoch,
            boot_id(),
            self.fingerprint,
            len(self.groups),
        )
        for group in self.groups:
            fields += _GROUP.pack(
                group.num_layers, group.num_kv_heads, group.head_dim, group.element_bytes, group.scale_bytes
            )
        fields += _CRC.pack(zlib.crc32(fields))
        return fields.ljust(HEADER_BYTES, b"\0")

    @classmethod
    def unpack(cls, header: bytes) -> KvPoolLayout:
        """Reads a header page. Raises KvPoolError for one that is damaged or of another version."""
        if len(header) < HEADER_BYTES:
            raise KvPoolError(f"the KV pool's header has {len(header)} bytes instead of {HEADER_BYTES}")
        magic, version, block_size, num_blocks, num_ranks, epoch, _, fingerprint, num_groups = _HEADER.unpack_from(
            header
        )
        if magic != _MAGIC:
            raise KvPoolError("not a KV pool: its first bytes are not a KV pool's magic")
        if version != LAYOUT_VERSION:
            raise KvPoolError(f"the KV pool has layout version {version}, this program reads {LAYOUT_VERSION}")
        end = _HEADER.size + num_groups * _GROUP.size
        if end + _CRC.size > HEADER_BYTES or _CRC.unpack_from(header, end) != (zlib.crc32(header[:end]),):
            raise KvPoolError("the KV pool's header is damaged: its checksum does not match")
        groups = tuple(
            CacheGroupLayout(*_GROUP.unpack_from(header, _HEADER.size + i * _GROUP.size)) for i in range(num_groups)
        )
        return cls(block_size, num_blocks, num_ranks, epoch, fingerprint, groups)


class KvPool:
    """A mapped KV pool. Closing it unmaps; the memory lives as long as anyone holds it."""

    def __init__(self, fd: int, *, writable_header: KvPoolLayout | None = None) -> None:
        """Takes over `fd`. With `writable_header` the pool is new and gets that header."""
        self.fd = fd
        try:
            if writable_header is not None:
                os.pwrite(fd, writable_header.pack(), 0)
            self.layout = KvPoolLayout.unpack(os.pread(fd, HEADER_BYTES, 0))
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
            for start, size in layout.extents(0, layout.num_blocks if num_blocks is None else num_blocks):
                _allocate(fd, start, size, "in memory")
            # A pool that cannot shrink cannot raise SIGBUS in those who map it.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, writable_header=layout)

    @classmethod
    def create_file(cls, path: Path, layout: KvPoolLayout) -> KvPool:
        """A pool in a file, mode 0600, with all pages allocated; replaces a pool that no process uses.

        Raises KvPoolError for a file that is anything else, or that cannot be made.
        """
        try:
            _remove_unused_pool(path)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise KvPoolError(f"cannot create the KV pool {path}: {error.strerror}", field="kv_pool") from error
        try:
            # Says that the pool is used, for as long as this descriptor is open.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _allocate(fd, 0, layout.total_bytes, f"at {path}")
        except BaseException:
            os.close(fd)
            path.unlink()
            raise
        return cls(fd, writable_header=layout)

    @classmethod
    def attach_path(cls, path: Path) -> KvPool:
        """Maps a pool that is a file. Raises KvPoolError if it is missing or damaged."""
        try:
            return cls(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            raise KvPoolError(f"cannot open the KV pool {path}: {error.strerror}", field="kv_pool") from error

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
        start = HEADER_BYTES + rank * self.layout.segment_bytes
        return memoryview(self._map)[start : start + self.layout.num_blocks * self.layout.block_bytes]

    def allocate(self, first_block: int, end_block: int) -> None:
        """Allocates the pages of blocks; the kernel clears some GB a second. Raises KvPoolError if there are none."""
        for start, size in self.layout.extents(first_block, end_block):
            _allocate(self.fd, start, size, "in memory")

    def remove(self, path: Path) -> None:
        """Removes the file of a pool that was made by `create_file`, unless another one has taken its place."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(self.fd)):
                path.unlink()

    def close(self) -> None:
        """Unmaps the pool. A segment that is still in use (by a tensor) keeps its mapping alive."""
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
    """The 16 bytes that name this boot of the machine: a pool file of another boot is stale."""
    return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))


def _remove_unused_pool(path: Path) -> None:
    """Removes a pool that nobody uses. Never truncated in place: another process may still map the old file."""
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise KvPoolError(f"{path} is not a KV pool and is not overwritten", field="kv_pool")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise KvPoolError(f"the KV pool {path} is used by another server", field="kv_pool") from error
            path.unlink()
    except FileNotFoundError:
        return


def _allocate(fd: int, start: int, size: int, where: str) -> None:
    try:
        os.posix_fallocate(fd, start, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
            raise KvPoolError(
                f"the KV pool does not fit {where}, {size} bytes more: {error.strerror}; lower --kv-cache-memory",
                field="kv_cache_memory",
            ) from error
        raise
