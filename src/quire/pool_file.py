"""The KV pool's second home: a file, which outlives all processes, and on a disk the machine's boot.

A lock (flock(2)) says that it is used. It belongs to the open file, which the executors and the supervisor get from the
scheduler (SCM_RIGHTS), and lasts until the last of them has closed and unmapped it. So a file is opened anew only when
every process of its last server is gone: a stopped one, which might wake up and write, keeps it locked. A file is never
truncated or overwritten, as somebody may still map it, but replaced by another one of the same name.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from pathlib import Path
from typing import Final

from quire.errors import KvPoolError
from quire.kv_layout import HEADER_BYTES, MAGIC, KvPoolHeader, KvPoolLayout, PoolState
from quire.kv_pool import KvPool, allocate_pages, write_header

_LOCK_INTERVAL_S: Final = 0.05


def open_unused(path: Path, timeout_s: float) -> int | None:
    """A descriptor of the pool at `path`, for the caller's server alone; None where there is none of any use.

    Raises KvPoolError for a file that is no pool, that others may write, that processes use for longer than
    `timeout_s`, or that cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KvPoolError(f"cannot open the KV pool {path}: {error.strerror}", field="kv_pool") from error
    try:
        if _is_worthless(descriptor, path):
            path.unlink(missing_ok=True)
            os.close(descriptor)
            return None
        _check_owner(descriptor, path)
        _lock(descriptor, path, timeout_s)
        return descriptor
    except BaseException:
        os.close(descriptor)
        raise


def create(path: Path, layout: KvPoolLayout) -> KvPool:
    """A new pool in a file of mode 0600, with all pages allocated, for the caller's server alone.

    Raises KvPoolError where there is a file already, or where none can be made.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _cannot_create(path, error) from error
    try:
        _lock(descriptor, path, 0)
        # First, so that what is left if we die now is known for a pool.
        write_header(descriptor, layout)
        allocate_pages(descriptor, 0, layout.total_bytes, f"at {path}")
    except BaseException as error:
        os.close(descriptor)
        path.unlink()
        if isinstance(error, OSError):
            raise _cannot_create(path, error) from error
        raise
    return KvPool(descriptor)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether it is a descriptor of the file that has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _is_worthless(descriptor: int, path: Path) -> bool:
    """Whether a file may be replaced whoever uses it. Raises KvPoolError if it is something else than a pool."""
    try:
        header = os.pread(descriptor, HEADER_BYTES, 0)
    except OSError:  # not a regular file
        header = b"\0"
    if not header:  # whoever made it died at once
        return True
    if not header.startswith(MAGIC):
        raise KvPoolError(f"{path} is not a KV pool and is not overwritten", field="kv_pool")
    try:
        return KvPoolHeader.unpack(header).state is PoolState.DISCARDED
    except KvPoolError:  # damaged; its users may be well
        return False


def _check_owner(descriptor: int, path: Path) -> None:
    """Raises KvPoolError for a pool in which others could have written what they like, or read what was asked."""
    found = os.fstat(descriptor)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise KvPoolError(f"the KV pool {path} is not this user's alone: it must be, with mode 0600", field="kv_pool")


def _cannot_create(path: Path, error: OSError) -> KvPoolError:
    return KvPoolError(f"cannot create the KV pool {path}: {error.strerror}", field="kv_pool")


def _lock(descriptor: int, path: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise KvPoolError(f"the KV pool {path} is used by another server", field="kv_pool") from error
            time.sleep(_LOCK_INTERVAL_S)
            continue
        except OSError as error:  # a file system without locks
            raise KvPoolError(f"the KV pool {path} cannot be locked: {error.strerror}", field="kv_pool") from error
        if not is_at(descriptor, path):  # replaced by somebody else meanwhile
            raise KvPoolError(f"the KV pool {path} is used by another server", field="kv_pool")
        return
