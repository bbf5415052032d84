"""How far an executor has come, for whoever watches it: it hangs if these numbers stand still while it has a step.

    offset   u64, little-endian, written by the executor alone
         0   plans taken: a step has begun
         8   layers computed, over all steps (by native code too, in the middle of a step)
        16   results written: a step is over

They lie in the rings' header page, or in the executor's own memory where steps go over gRPC. Nothing is ordered by
them: they say that something happened, not that one may read what it wrote.
"""

from __future__ import annotations

import ctypes
from typing import Final, Self

PLANS_TAKEN: Final = 0
LAYERS_COMPUTED: Final = 8
RESULTS_WRITTEN: Final = 16
COUNTERS_BYTES: Final = 24

_WORD: Final = 8


class StepCounters:
    """The counters in 24 writable bytes that begin at a multiple of 8. Each of them has one thread that writes it."""

    def __init__(self, memory: memoryview) -> None:
        self._words = memory.cast("Q")

    @classmethod
    def private(cls) -> Self:
        """In memory of this process."""
        return cls(memoryview(bytearray(COUNTERS_BYTES)))

    @property
    def plans_taken(self) -> int:
        return self._words[PLANS_TAKEN // _WORD]

    @property
    def layers_computed(self) -> int:
        return self._words[LAYERS_COMPUTED // _WORD]

    @property
    def results_written(self) -> int:
        return self._words[RESULTS_WRITTEN // _WORD]

    @property
    def progress(self) -> int:
        """A number that changes whenever one of them does."""
        return sum(self._words)

    @property
    def layers_address(self) -> int:
        """Where native code counts layers; valid for as long as the memory is."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self._words)) + LAYERS_COMPUTED

    def count_plan(self) -> None:
        self._words[PLANS_TAKEN // _WORD] += 1

    def count_layer(self) -> None:
        self._words[LAYERS_COMPUTED // _WORD] += 1

    def count_result(self) -> None:
        self._words[RESULTS_WRITTEN // _WORD] += 1

    def release(self) -> None:
        """Lets go of the memory, which can be unmapped then."""
        self._words.release()
