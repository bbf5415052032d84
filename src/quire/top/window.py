"""What the counters of states say of the last seconds."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final

from quire.v1 import monitor_pb2

WINDOW_S: Final = 30.0


class Window:
    """The states of the last seconds. One of another scheduler, whose counters begin again, begins a new window."""

    def __init__(self, length_s: float = WINDOW_S) -> None:
        self._length_ns = int(length_s * 1e9)
        self._states: deque[monitor_pb2.ServerState] = deque()

    def add(self, state: monitor_pb2.ServerState) -> None:
        """The next state."""
        states = self._states
        if states and states[0].scheduler_start_ns != state.scheduler_start_ns:
            states.clear()
        states.append(state)
        # The oldest is as old as the window, or a little older.
        while len(states) > 2 and states[1].loads.time_ns <= state.loads.time_ns - self._length_ns:
            states.popleft()

    @property
    def seconds(self) -> float:
        """From the oldest state to the latest; 0 if there is one alone."""
        if not self._states:
            return 0.0
        return max(0.0, (self._states[-1].loads.time_ns - self._states[0].loads.time_ns) / 1e9)

    def rate(self, counter: Callable[[monitor_pb2.ServerState], int]) -> float | None:
        """By how much a counter grew per second; None before the second state."""
        if not self.seconds:
            return None
        return (counter(self._states[-1]) - counter(self._states[0])) / self.seconds

    def share(
        self, part: Callable[[monitor_pb2.ServerState], int], whole: Callable[[monitor_pb2.ServerState], int]
    ) -> float | None:
        """Of what one counter grew by, the part that another grew by; None where nothing was counted."""
        parts, wholes = self.rate(part), self.rate(whole)
        return parts / wholes if parts is not None and wholes else None

    def quantiles(
        self, histogram: Callable[[monitor_pb2.ServerState], monitor_pb2.Histogram], *wanted: float
    ) -> list[float] | None:
        """Quantiles (0 to 1) of what was observed in the window, in the histogram's unit; None if nothing was."""
        if not self._states:
            return None
        new, old = histogram(self._states[-1]), histogram(self._states[0])
        return quantiles(new.bounds, [n - o for n, o in zip(new.counts, old.counts, strict=True)], *wanted)


def quantiles(bounds: Sequence[float], counts: Sequence[int], *wanted: float) -> list[float] | None:
    """Quantiles (0 to 1) of a histogram, linear within its buckets, as Prometheus' histogram_quantile; None if empty.

    `counts` has one more than `bounds`; what lies in the last bucket is given as the last bound.
    """
    totals = list(accumulate(counts))
    if not totals or not totals[-1]:
        return None
    found = []
    for quantile in wanted:
        rank = quantile * totals[-1]
        bucket = min(bisect_left(totals, rank), len(bounds) - 1)
        low = bounds[bucket - 1] if bucket else 0.0
        before = totals[bucket - 1] if bucket else 0
        inside = counts[bucket]
        part = min(1.0, (rank - before) / inside) if inside else 1.0
        found.append(low + (bounds[bucket] - low) * part)
    return found
