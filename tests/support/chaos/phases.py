"""Kills at chosen points of a step, found by reading the counters in the executor's rings from outside.

The counters stay readable after a death, for as long as somebody maps them: so where a process really died is known.
"""

from __future__ import annotations

import contextlib
import enum
import mmap
import os
import random
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from support.chaos.server import RECOVERY_TIMEOUT_S, ChaosServer
from support.servers import wait_for

from quire.ring import COUNTERS_OFFSET

_RINGS: Final = "memfd:quire-step-rings"
# The bundled model's.
_NUM_LAYERS: Final = 6
# That pass before a kill. A second of steps, when the machine does nothing else.
_FEW_STEPS: Final = range(1, 12)
_MANY_STEPS: Final = range(120, 180)
# Plans taken, layers computed, results written: src/quire/step_counters.py.
_WORDS: Final = struct.Struct("<QQQ")


class Phase(enum.Enum):
    """Where in a step an executor is."""

    BETWEEN = "after the acknowledgement"
    PLAN_TAKEN = "plan taken"
    FORWARD = "mid-forward"
    COMPUTED = "before the acknowledgement"


@dataclass(frozen=True)
class Count:
    """What an executor has done since its rings were made."""

    plans_taken: int
    layers_computed: int
    results_written: int

    @property
    def phase(self) -> Phase:
        layers = self.layers_computed - _NUM_LAYERS * self.results_written
        if self.plans_taken == self.results_written:
            return Phase.BETWEEN
        if layers <= 0:
            return Phase.PLAN_TAKEN
        return Phase.FORWARD if layers < _NUM_LAYERS else Phase.COMPUTED


class StepWatch:
    """The counters of an executor's rings. A context manager."""

    def __init__(self, process: psutil.Process, *, newer_than: StepWatch | None = None) -> None:
        """Raises LookupError if the process has no rings, or only those that `newer_than` watches."""
        inode, path = _find_rings(process, newer_than.inode if newer_than else None)
        self.inode = inode
        fd = os.open(path, os.O_RDONLY)
        try:
            self._map = mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(fd)

    def count(self) -> Count:
        """What they say now."""
        return Count(*_WORDS.unpack_from(self._map, COUNTERS_OFFSET))

    def __enter__(self) -> StepWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self._map.close()


def _find_rings(process: psutil.Process, other_than: int | None) -> tuple[int, Path]:
    """Inode and path of a process's rings."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for path in Path(f"/proc/{process.pid}/fd").iterdir():
            if _RINGS in str(path.readlink()) and (inode := path.stat().st_ino) != other_than:
                return inode, path
    raise LookupError(f"process {process.pid} has no rings")


@dataclass(frozen=True)
class Kill:
    """One that was carried out."""

    titles: tuple[str, ...]
    aimed: Phase
    # Where the executor was when the killed process was replaced: dead, or alive beside a dead scheduler.
    hit: Phase
    # From the signal to the first step computed afterwards.
    recovery_s: float


class Killer:
    """Kills processes of a server while requests run, in phases that a seed chooses."""

    def __init__(self, server: ChaosServer, *titles: str, seed: int) -> None:
        self._server = server
        self._titles = titles
        self._draw = random.Random(seed)
        self._phases: list[Phase] = []
        self.kills: list[Kill] = []

    def run(self, count: int, is_over: Callable[[], bool]) -> None:
        """Kills until there were `count` kills in all, or no request is left: `is_over()`.

        All phases have had their turn before one comes again. The first kill comes early; the next ones after more
        steps, or the supervisor's back-off would take the process for one that cannot run.
        """
        steps = _FEW_STEPS
        while len(self.kills) < count:
            if not self._phases:
                self._phases = self._draw.sample(list(Phase), len(Phase))
            if not self._kill(self._phases[-1], self._draw.choice(steps), is_over):
                return
            self._phases.pop()
            steps = _MANY_STEPS

    def _kill(self, phase: Phase, steps: int, is_over: Callable[[], bool]) -> bool:
        """Lets some steps pass, kills in that phase, and waits until steps are computed again."""
        pids = {title: self._server.find(title).pid for title in self._titles}
        with self._watch(None) as watch:
            begin = watch.count().results_written + steps
            if not _poll(lambda: watch.count().results_written >= begin, is_over):
                return False
            if not _poll(lambda: watch.count().phase is phase, is_over):
                return False
            for pid in pids.values():
                os.kill(pid, signal.SIGKILL)
            killed_at = time.monotonic()
            for title, pid in pids.items():
                self._server.wait_replaced(title, pid)
            hit = watch.count().phase
            with self._watch(watch) as after:
                wait_for(lambda: after.count().results_written > 0 or is_over(), RECOVERY_TIMEOUT_S)
        self.kills.append(Kill(self._titles, phase, hit, time.monotonic() - killed_at))
        print(self.kills[-1])
        return True

    def _watch(self, newer_than: StepWatch | None) -> StepWatch:
        """Of the executor, once it has rings (other ones)."""
        found: list[StepWatch] = []

        def is_there() -> bool:
            with contextlib.suppress(LookupError, OSError):
                found.append(StepWatch(self._server.find("executor 0"), newer_than=newer_than))
            return bool(found)

        wait_for(is_there, RECOVERY_TIMEOUT_S)
        return found[0]


def _poll(condition: Callable[[], bool], is_over: Callable[[], bool]) -> bool:
    """Spins, since a phase lasts a fraction of a millisecond; False if it was over first."""
    deadline = time.monotonic() + RECOVERY_TIMEOUT_S
    while not condition():
        if is_over():
            return False
        assert time.monotonic() < deadline, "no step came to that phase"
        time.sleep(0)  # lets the clients' thread run
    return True
