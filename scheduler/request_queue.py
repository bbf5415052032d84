"""Sequences that wait to run, and which of the running ones comes first: the policies of scheduling."""

from __future__ import annotations

import bisect
from abc import ABC, abstractmethod

from quire.scheduler.sequence import Sequence


class RequestQueue(ABC):
    """A queue whose head runs next; it counts what each tenant has in it."""

    # Whether ranks change while sequences run.
    reorders = False

    def __init__(self) -> None:
        self._length = 0
        # Of the prompts of all that wait.
        self.num_prompt_tokens = 0

    def __len__(self) -> int:
        return self._length

    def push(self, sequence: Sequence) -> None:
        """Queues a sequence, which may have run before."""
        self._insert(sequence)
        self._count(sequence, 1)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out: mostly the head."""
        self._take(sequence)
        self._count(sequence, -1)

    @abstractmethod
    def head(self) -> Sequence | None:
        """The sequence that runs next, which stays in the queue."""

    @abstractmethod
    def __contains__(self, sequence: Sequence) -> bool: ...

    @abstractmethod
    def rank(self, sequence: Sequence) -> float | tuple[float, int]:
        """Running sequences are sorted by it: the first gets tokens first, the last loses its blocks first."""

    def goes_before(self, running: Sequence) -> bool:
        """Whether the head's prompt, if it can run, goes before the rest of a running sequence's prompt."""
        return False

    def displaced(self, running: list[list[Sequence]], num_slots: int, *, lacks_blocks: bool) -> list[Sequence]:
        """Running sequences (by lane) that must make way for waiting ones, though they could go on.

        `lacks_blocks`: there is no room in the pool for the head.
        """
        return []

    @abstractmethod
    def _insert(self, sequence: Sequence) -> None: ...

    @abstractmethod
    def _take(self, sequence: Sequence) -> None: ...

    def _count(self, sequence: Sequence, change: int) -> None:
        self._length += change
        self.num_prompt_tokens += change * sequence.num_prompt_tokens
        tenant = sequence.request.tenant
        tenant.num_waiting += change
        tenant.num_waiting_tokens += change * sequence.num_prompt_tokens


class ArrivalQueue(RequestQueue):
    """By priority and then by arrival: a preempted sequence returns to the place that these gave it."""

    def __init__(self) -> None:
        super().__init__()
        # Sorted by falling order, so that the head is taken from the end.
        self._sequences: list[Sequence] = []

    def head(self) -> Sequence | None:
        return self._sequences[-1] if self._sequences else None

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._sequences

    def rank(self, sequence: Sequence) -> int:
        return sequence.order

    def _insert(self, sequence: Sequence) -> None:
        insert_by_arrival(self._sequences, sequence)

    def _take(self, sequence: Sequence) -> None:
        take_out(self._sequences, sequence)


def insert_by_arrival(sequences: list[Sequence], sequence: Sequence) -> None:
    """Adds to a list whose last is the first to run."""
    bisect.insort(sequences, sequence, key=_falling)


def take_out(sequences: list[Sequence], sequence: Sequence) -> None:
    """Removes from such a list, where its last is what is mostly removed."""
    if sequences[-1] is sequence:
        sequences.pop()
    else:
        sequences.remove(sequence)


def _falling(sequence: Sequence) -> int:
    return -sequence.order
