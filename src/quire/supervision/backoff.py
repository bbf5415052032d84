"""When a process that died is started again, and when it is given up."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

# Failed starts in a row after which there is no use in another.
MAX_FAILED_STARTS: Final = 5

_FIRST_DELAY_S: Final = 0.1
_LONGEST_DELAY_S: Final = 10.0
# After so long in health, the next death counts as the first.
_RESET_S: Final = 30.0
# A delay that is a smaller share of the health before it than this needs no doubling.
_SHARE_OF_HEALTH: Final = 0.1


class Backoff:
    """At once the first time, then after a delay that doubles while the process keeps dying young."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._delay_s: float | None = None
        self._ready_since: float | None = None
        self._failed_starts = 0

    @property
    def is_exhausted(self) -> bool:
        """Whether too many starts in a row have failed."""
        return self._failed_starts >= MAX_FAILED_STARTS

    def ready(self) -> None:
        """The process serves."""
        self._ready_since = self._clock()
        self._failed_starts = 0

    def start_failed(self) -> None:
        """The process has ended, or was given up, before it served."""
        self._failed_starts += 1

    def next_delay_s(self) -> float:
        """The process has died: how long to wait before the next start."""
        health_s = 0.0 if self._ready_since is None else self._clock() - self._ready_since
        self._ready_since = None
        if self._delay_s is None or health_s >= _RESET_S:
            self._delay_s = 0.0
        elif self._delay_s == 0:
            self._delay_s = _FIRST_DELAY_S
        elif self._delay_s > health_s * _SHARE_OF_HEALTH:
            self._delay_s = min(2 * self._delay_s, _LONGEST_DELAY_S)
        return self._delay_s
