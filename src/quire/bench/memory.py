"""How much memory a group of processes takes, each page counted once.

Of what is private or of files, the proportional set size (Pss_Anon and Pss_File of smaps_rollup, proc(5)); of shared
memory (the KV pool, packed weights, rings) all that is allocated, be it mapped or not. On a CPU that is all there is; a
GPU's own memory is not in it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_INTERVAL_S: Final = 0.5
_COUNTED: Final = ("Pss_Anon:", "Pss_File:")


def memory_of(pids: Iterable[int], keepers: Iterable[int] = ()) -> int:
    """Bytes that processes take now, and the shared memory that `keepers` keep for them. Ended ones take nothing."""
    pids = list(pids)
    total, shared = 0, {}
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += _own_bytes(pid)
    for pid in {*pids, *keepers}:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            shared.update(_shared_bytes(pid))
    return total + sum(shared.values())


class PeakMemory:
    """Looks twice a second, from a thread, while the block runs. `bytes` is the most that was seen."""

    def __init__(self, measure: Callable[[], int]) -> None:
        self.bytes = 0
        self._measure = measure
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self.bytes = max(self.bytes, self._measure())

    def _watch(self) -> None:
        while not self._ended.wait(_INTERVAL_S):
            self.bytes = max(self.bytes, self._measure())


def _own_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(_COUNTED))


def _shared_bytes(pid: int) -> dict[int, int]:
    """Allocated bytes of the anonymous files that a process has open, by their inodes."""
    found = {}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if str(path.readlink()).startswith("/memfd:"):
                status = path.stat()
                found[status.st_ino] = status.st_blocks * 512
    return found
