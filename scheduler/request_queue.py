"""Sequences that wait to run, by priority and arrival."""

from __future__ import annotations

import bisect

from quire.scheduler.sequence import Sequence


class RequestQueue:
    """A preempted sequence returns to the place that its priority and its arrival gave it."""

    def __init__(self) -> None:
        # Sorted by falling order, so that the head is popped from the end.
        self._sequences: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def push(self, sequence: Sequence) -> None:
        bisect.insort(self._sequences, sequence, key=lambda waiting: -waiting.order)

    def head(self) -> Sequence | None:
        """The sequence that runs next, which stays in the queue."""
        return self._sequences[-1] if self._sequences else None

    def pop(self) -> Sequence:
        return self._sequences.pop()

    def remove(self, sequence: Sequence) -> None:
        self._sequences.remove(sequence)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._sequences
