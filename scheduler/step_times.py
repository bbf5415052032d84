"""When an executor computed a step, as far as the scheduler can know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from quire.internal.v1 import executor_pb2

if TYPE_CHECKING:
    from quire.scheduler.step_loop import StepRecord

# A plan may be taken up before the scheduler has noted that it is sent.
_SLACK_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class StepTimes:
    """When an executor computed a step, by this host's CLOCK_MONOTONIC (nanoseconds)."""

    started_ns: int
    finished_ns: int

    @classmethod
    def of(cls, record: StepRecord, result: executor_pb2.StepResult) -> StepTimes:
        """What the result says, if its clock is ours.

        An executor of another host has another clock: then the step ended when its result came, and took as long as
        the executor says.
        """
        received_ns = record.result_received_ns
        if record.plan_sent_ns - _SLACK_NS <= result.started_ns <= result.finished_ns <= received_ns:
            return cls(result.started_ns, result.finished_ns)
        return cls(received_ns - max(0, result.finished_ns - result.started_ns), received_ns)
