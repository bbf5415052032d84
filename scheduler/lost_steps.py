"""Requests whose steps cost one executor after the other: they end with an error, and the server does not."""

from __future__ import annotations

from typing import Final

from quire.scheduler.sequence import Request
from quire.scheduler.step_plan import StepPlan

# Executors that may be lost over steps of a request, one after the other, while it gets nothing ahead.
MAX_LOST_STEPS: Final = 5

BLAME: Final = f"{MAX_LOST_STEPS} executors in a row failed while they computed this request"


def requests_to_blame(lost: StepPlan) -> list[Request]:
    """Counts the loss of a step for all of its requests; returns those for which that was once too often."""
    requests = dict.fromkeys(sequence.request for sequence in lost.sequences)
    for request in requests:
        request.count_lost_step()
    return [request for request in requests if request.num_lost_steps >= MAX_LOST_STEPS and not request.is_finished]
