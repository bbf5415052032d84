"""A step between its plan and its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quire.executor.input_batch import PlanRows
from quire.executor.kv_cache import KvCache
from quire.internal.v1 import executor_pb2
from quire.step_counters import StepCounters

_Ids = NDArray[np.int64]


@dataclass(slots=True)
class Step:
    """A plan whose differences have been applied to the tables.

    Attributes:
        copies: int64 [n] each: blocks to copy before anything is computed, and where to; None: none.
        result: begun, with the plan's number.
    """

    rows: PlanRows
    copies: tuple[_Ids, _Ids] | None
    result: executor_pb2.StepResult
    counters: StepCounters | None


class PendingStep(Protocol):
    """A step that has been launched."""

    @property
    def is_done(self) -> bool:
        """Whether `result` would not wait. Raises RuntimeError if the device has failed."""

    def result(self) -> executor_pb2.StepResult:
        """Waits for the step, and for those before it; the same each time. Raises what the step failed with."""


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """One that was over when it had been launched."""

    _result: executor_pb2.StepResult
    is_done: bool = True

    def result(self) -> executor_pb2.StepResult:
        """See PendingStep."""
        return self._result


class Steps(Protocol):
    """What computes steps, in the order in which they are launched."""

    @property
    def max_in_flight(self) -> int:
        """See ModelRunner."""

    @property
    def completion_fd(self) -> int | None:
        """See ModelRunner."""

    def attach(self, cache: KvCache) -> None:
        """Computes in this pool from now on; nothing is in flight."""

    def detach(self) -> None:
        """Lets go of the pool, once nothing is in flight."""

    def launch(self, step: Step) -> PendingStep:
        """Begins a step."""

    def drain(self) -> None:
        """Waits for all steps in flight, whose results nobody wants."""

    def use_pause(self, *, idle: bool) -> bool:
        """See ModelRunner."""
