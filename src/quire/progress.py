"""A page of shared memory in which a process shows that it is alive: its event loop counts there, its parent reads.

A stopped process, a blocked event loop and a thread that never gives up the interpreter look alike: the count stands
still. The parent makes the page and seals its size, so that a child cannot take the memory away from under it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterator
from typing import Final, Self

_BEAT_INTERVAL_S: Final = 0.5
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class ProgressPage:
    """One writer, any number of readers. An aligned u64 is written at once, so nobody reads half of one."""

    def __init__(self, fd: int) -> None:
        """Maps the page of a descriptor, which becomes the page's own."""
        self.fd = fd
        os.set_inheritable(fd, False)
        self._memory = mmap.mmap(fd, mmap.PAGESIZE)
        self._counters = memoryview(self._memory).cast("Q")

    @classmethod
    def create(cls) -> Self:
        """A new page, for a child to write into."""
        fd = os.memfd_create("quire-progress", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, mmap.PAGESIZE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return cls(fd)

    @property
    def beats(self) -> int:
        """How often the event loop came around to counting."""
        return self._counters[0]

    def beat(self) -> None:
        """Counts."""
        self._counters[0] += 1

    def close(self) -> None:
        self._counters.release()
        self._memory.close()
        os.close(self.fd)


@contextlib.contextmanager
def heartbeats(fd: int | None) -> Iterator[None]:
    """Counts in the page of `fd` from the running event loop, twice a second; without a page nobody asked for it."""
    if fd is None:
        yield
        return
    loop = asyncio.get_running_loop()
    with contextlib.closing(ProgressPage(fd)) as page:
        timer: asyncio.TimerHandle | None = None

        def beat() -> None:
            nonlocal timer
            page.beat()
            timer = loop.call_later(_BEAT_INTERVAL_S, beat)

        beat()
        try:
            yield
        finally:
            assert timer is not None
            timer.cancel()
