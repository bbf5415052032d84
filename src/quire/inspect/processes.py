"""Which processes hold KV pools, from /proc (proc(5)): by a descriptor, or by a mapping alone as executors do."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from quire.kv_layout import MAGIC

# Device and inode: what a pool is, under whatever name.
Identity: TypeAlias = tuple[int, int]

MEMFD_NAME: Final = "quire-kv-pool"
_PROC: Final = Path("/proc")
# start-end perms offset dev inode path; only what is shared with others can be a pool.
_MAPPING: Final = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ..[-x]s [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) (\d+) +(/.*)$")
_TITLE_CHARS: Final = 100


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that keeps a pool's memory alive."""

    pid: int
    title: str
    # As ps shows it: R, S, D, T (stopped), Z.
    state: str

    @property
    def is_executor(self) -> bool:
        return self.title.startswith("quire: executor")


@dataclass(slots=True)
class HeldPool:
    """A pool and those who hold it. `size` is in bytes."""

    size: int
    holders: list[Holder] = field(default_factory=list)

    @property
    def is_unserved(self) -> bool:
        """Whether nobody is left who hands out its blocks: executors only compute what they are told."""
        return all(holder.is_executor for holder in self.holders)


def open_if_pool(path: Path) -> int | None:
    """A descriptor for reading, if it is a regular file (or memory) that begins as a pool does. Raises OSError."""
    # Opening a pipe or a device may have effects.
    if not stat.S_ISREG(path.stat().st_mode):
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and os.pread(descriptor, len(MAGIC), 0) == MAGIC:
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def identity_of(descriptor: int) -> Identity:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def open_pools(pid: int) -> dict[Identity, int]:
    """Descriptors, for reading and the caller's to close, of all pools that a process holds.

    Raises ProcessLookupError where there is none, and PermissionError for a process of somebody else.
    """
    found: dict[Identity, int] = {}
    try:
        for path in [*_descriptors(pid), *(path for _, _, path in _mappings(pid))]:
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile, or memory without a name
                _add_pool(found, path)
        for identity, _, path in _mappings(pid):
            if MEMFD_NAME in path.name and identity not in found:
                _add_from_others(found, identity)
    except BaseException:
        close_all(found)
        raise
    return found


def close_all(pools: dict[Identity, int]) -> None:
    """Closes the descriptors."""
    while pools:
        os.close(pools.popitem()[1])


def held_pools(descriptor: int) -> dict[Identity, HeldPool]:
    """All anonymous pools and that of our `descriptor`, with those processes that hold them and let us look.

    The descriptor itself, by which we look, does not count.
    """
    pools: dict[Identity, HeldPool] = {}
    of_interest = identity_of(descriptor)
    for pid in _all_pids():
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            held = _held_by(pid, of_interest, descriptor if pid == os.getpid() else None)
            holder = Holder(pid, title_of(pid), _state_of(pid))
            for identity, size in held.items():
                pools.setdefault(identity, HeldPool(size)).holders.append(holder)
    return pools


def title_of(pid: int) -> str:
    """What ps shows of a process. Raises OSError."""
    words = (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return words[:_TITLE_CHARS] or (_PROC / str(pid) / "comm").read_text().strip()


def _state_of(pid: int) -> str:
    # The name before it may hold anything.
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]


def _all_pids() -> list[int]:
    return [int(path.name) for path in _PROC.iterdir() if path.name.isdecimal()]


def _descriptors(pid: int) -> list[Path]:
    """Raises ProcessLookupError and PermissionError."""
    try:
        return list((_PROC / str(pid) / "fd").iterdir())
    except FileNotFoundError as error:
        raise ProcessLookupError from error


def _mappings(pid: int) -> Iterator[tuple[Identity, int, Path]]:
    """Identity, size in bytes and name of each shared mapping of a file or of named memory."""
    try:
        lines = (_PROC / str(pid) / "maps").read_text(errors="replace").splitlines()
    except FileNotFoundError as error:
        raise ProcessLookupError from error
    for line in lines:
        if (match := _MAPPING.match(line)) is not None:
            start, end, major, minor = (int(part, 16) for part in match.group(1, 2, 3, 4))
            yield (os.makedev(major, minor), int(match[5])), end - start, Path(match[6])


def _add_pool(found: dict[Identity, int], path: Path) -> None:
    descriptor = open_if_pool(path)
    if descriptor is None:
        return
    if (identity := identity_of(descriptor)) in found:
        os.close(descriptor)
    else:
        found[identity] = descriptor


def _add_from_others(found: dict[Identity, int], identity: Identity) -> None:
    """Memory that a process only maps is opened through another one that has a descriptor of it."""
    for pid in _all_pids():
        with contextlib.suppress(OSError):
            for path in _descriptors(pid):
                with contextlib.suppress(FileNotFoundError):
                    if (status := path.stat()).st_ino == identity[1] and status.st_dev == identity[0]:
                        _add_pool(found, path)
                        return


def _held_by(pid: int, of_interest: Identity, ignored: int | None) -> dict[Identity, int]:
    """Pools of a process and their sizes in bytes; the descriptor `ignored` does not count."""
    held: dict[Identity, int] = {}
    for path in _descriptors(pid):
        if path.name == str(ignored):
            continue
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            identity = status.st_dev, status.st_ino
            if identity == of_interest or MEMFD_NAME in str(path.readlink()):
                held[identity] = status.st_size
    for identity, size, path in _mappings(pid):
        if identity == of_interest or MEMFD_NAME in path.name:
            held[identity] = max(size, held.get(identity, 0))
    return held
