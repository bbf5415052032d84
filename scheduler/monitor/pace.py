"""What onlookers may cost."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator


class Pace:
    """When the next piece of work for onlookers may begin, if all of it may take no more than a share of the time."""

    def __init__(self, share: float) -> None:
        """`share`: 0.02 means that what takes a millisecond is followed by a pause of 49."""
        self._pause = 1 / share - 1
        self._not_before = -math.inf

    def spend(self, seconds: float) -> None:
        """So much time went into onlookers."""
        self._not_before = max(self._not_before, time.perf_counter()) + seconds * self._pause

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Spends what the block takes; it must not wait for anything."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.spend(time.perf_counter() - started)

    @property
    def wait_s(self) -> float:
        """Seconds until work may begin; others may have worked meanwhile."""
        return self._not_before - time.perf_counter()
