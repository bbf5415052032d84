"""Requests whose steps cost one executor after the other: they end with an error, and the server does not.

A step that is lost is held against all of its requests, until they get ahead: one of them is to blame, or none. Before
a request is given up it is tried apart from the others that are suspect, so that these show that they are not to blame.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from quire.scheduler.sequence import Request, Sequence
from quire.scheduler.step_plan import StepPlan

# Executors that may be lost over steps of a request, one after the other, while it gets nowhere.
MAX_LOST_STEPS: Final = 5
# As many make it suspect.
_SUSPECT_LOST_STEPS: Final = 3

BLAME: Final = f"{MAX_LOST_STEPS} executors in a row failed while they computed this request"


def requests_to_blame(lost: StepPlan) -> list[Request]:
    """Counts the loss of a step for all of its requests; returns those for which that was once too often."""
    # By request: tokens that are computed for sure. One of its rows may build on what another has in the same step.
    computed: dict[Request, int] = {}
    for sequence, num_computed in zip(lost.sequences, lost.computed_tokens, strict=True):
        computed[sequence.request] = min(num_computed, computed.get(sequence.request, num_computed))
    for request, num_computed in computed.items():
        progress = num_computed + request.num_known_tokens + request.num_scored_tokens
        request.num_lost_steps = 1 if progress > request.progress_at_loss else request.num_lost_steps + 1
        request.progress_at_loss = max(progress, request.progress_at_loss)
        request.num_tokens_at_loss = request.num_known_tokens
    return [request for request in computed if request.num_lost_steps >= MAX_LOST_STEPS and not request.is_finished]


def is_suspect(request: Request) -> bool:
    """Whether executors were lost over it, and there was no new token since."""
    return request.num_lost_steps >= _SUSPECT_LOST_STEPS and request.num_known_tokens == request.num_tokens_at_loss


def may_run_beside(request: Request, running: Iterable[Sequence]) -> bool:
    """Whether a request may join those that run on an executor: one that is suspect, if no other suspect is there."""
    return not is_suspect(request) or not any(
        is_suspect(sequence.request) for sequence in running if sequence.request is not request
    )
