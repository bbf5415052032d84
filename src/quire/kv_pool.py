"""The KV pool: one piece of shared memory that the scheduler makes and executors attach.

`kv_layout.py` says what lies where in it. It has two homes: a memfd whose descriptor is handed over (`handover.py`), or
a file (`pool_file.py`), which outlives all processes. Not `multiprocessing.shared_memory`: its resource tracker unlinks
what other processes still use.

Torch-free, since the scheduler imports it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from pathlib import Path
from types import TracebackType
from typing import Final

from quire import handover
from quire.errors import KvPoolError
from quire.kv_journal import KvJournal
from quire.kv_layout import HEADER_BYTES, KvPoolHeader, KvPoolLayout, PoolState
from quire.settings import flag_name

# Of a memfd that nobody can shrink or grow any more.
FIXED_SIZE_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

# By the setting that says how much memory it takes.
_NAMES: Final = {"kv_cache_memory": "the KV pool", "swap_space": "the swap tier"}


class KvPool:
    """A mapped KV pool. Closing it unmaps; the memory lives as long as anyone holds it."""

    def __init__(self, fd: int, setting: str = "kv_cache_memory") -> None:
        """Takes over `fd`; `setting` says how large it is. Raises KvPoolError if it is no pool, or a damaged one."""
        self.fd = fd
        self._setting = setting
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
    def create_memfd(
        cls, layout: KvPoolLayout, num_blocks: int | None = None, setting: str = "kv_cache_memory"
    ) -> KvPool:
        """A pool in anonymous shared memory of fixed size, which `setting` has given.

        Pages are allocated for the first `num_blocks` blocks (all, if None); `allocate` adds others.
        """
        fd = os.memfd_create("quire-kv-pool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, layout.total_bytes)
            allocate_pages(fd, 0, layout.data_offset, "in memory", setting)
            for start, size in layout.extents(0, layout.num_blocks if num_blocks is None else num_blocks):
                allocate_pages(fd, start, size, "in memory", setting)
            write_header(fd, layout)
            # A pool that cannot shrink cannot raise SIGBUS in those who map it.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, FIXED_SIZE_SEALS)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, setting)

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
        if not self.layout.num_ranks:
            raise KvPoolError("the blocks of this KV pool lie in an executor's memory")
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
            allocate_pages(self.fd, start, size, "in memory", self._setting)

    @property
    def num_missing_bytes(self) -> int:
        """Bytes of it that have no pages yet."""
        return max(self.layout.total_bytes - os.fstat(self.fd).st_blocks * 512, 0)

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


def allocate_pages(fd: int, start: int, size: int, where: str, setting: str = "kv_cache_memory") -> None:
    """Raises KvPoolError where there are not so many."""
    if not size:  # which the call refuses
        return
    try:
        os.posix_fallocate(fd, start, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EDQUOT):
            raise KvPoolError(
                f"{_NAMES[setting]} does not fit {where}, {size} bytes more: {error.strerror}; "
                f"lower {flag_name(setting)}",
                field=setting,
            ) from error
        raise
