"""Which processes stand still."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final, Generic, TypeVar

K = TypeVar("K")

# How often to look.
INTERVAL_S: Final = 0.5
# A look that comes later than this was kept from coming: this process was stopped, or its machine too busy for it.
_LATE_S: Final = 1.0


class Watchdog(Generic[K]):
    """Finds counts that no longer change. Time in which nobody looked says nothing about them."""

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s = timeout_s
        self._clock = clock
        self._last_look = clock()
        # The count last seen, and since when.
        self._seen: dict[K, tuple[int, float]] = {}

    def look(self, counts: Mapping[K, int]) -> list[K]:
        """Takes in the present counts, every INTERVAL_S; returns whose have stood still for the timeout."""
        now = self._clock()
        if now - self._last_look > INTERVAL_S + _LATE_S:
            self._seen = {}
        self._last_look = now
        # What is no longer watched is forgotten.
        self._seen = {key: self._update(key, count, now) for key, count in counts.items()}
        return [key for key, (_, since) in self._seen.items() if now - since >= self._timeout_s]

    def _update(self, key: K, count: int, now: float) -> tuple[int, float]:
        known = self._seen.get(key)
        return known if known is not None and known[0] == count else (count, now)
