"""Whether a step's result is the answer to its plan.

All of it is looked at before anything of it is taken in: an executor whose answer makes no sense is lost like one that
died, and what its step was to give is computed again, so no half of it may have been published.
"""

from __future__ import annotations

from quire.errors import QuireError
from quire.internal.v1 import executor_pb2
from quire.scheduler.sequence import Sequence, SequenceStatus
from quire.scheduler.step_plan import StepPlan


def check_result(plan: StepPlan, sampled: list[Sequence], result: executor_pb2.StepResult) -> None:
    """`sampled` is `plan.sampled`. Raises QuireError for a result that does not fit the plan."""
    if len(result.token_ids) != 4 * len(sampled):
        num_tokens = len(result.token_ids) // 4
        raise QuireError(f"step {plan.step} gave {num_tokens} tokens where {len(sampled)} were due")
    if result.logprobs:
        _check_logprobs(plan, len(sampled), result)
    if plan.chunks:
        _check_candidates(plan, sampled, result)
    if result.failures or result.prompt_logprobs:
        _check_slots(plan, result)
    due, given = [plan.slots[row] for row in plan.pooled_rows], [entry.slot for entry in result.embeddings]
    if due != given:
        raise QuireError(f"step {plan.step} gave embeddings of slots {given} where those of {due} were due")


def _check_logprobs(plan: StepPlan, num_rows: int, result: executor_pb2.StepResult) -> None:
    for entry in result.logprobs:
        if entry.row >= num_rows:
            raise QuireError(f"step {plan.step} gave logprobs of row {entry.row} of {num_rows}")


def _check_candidates(plan: StepPlan, sampled: list[Sequence], result: executor_pb2.StepResult) -> None:
    """Beams are among the chunks: what they go on with is not known to anyone before they are planned."""
    if all(plan.sequences[chunk.row].beams is None for chunk in plan.chunks):
        return
    given = {entry.row for entry in result.logprobs}
    for row, sequence in enumerate(sampled):
        if sequence.beams is not None and sequence.status is SequenceStatus.RUNNING and row not in given:
            raise QuireError(f"step {plan.step} gave no candidates for {sequence}")


def _check_slots(plan: StepPlan, result: executor_pb2.StepResult) -> None:
    slots = set(plan.slots)
    for failure in result.failures:
        if failure.slot not in slots:
            raise QuireError(f"step {plan.step} fails slot {failure.slot}, which is not in its plan")
    for scored in result.prompt_logprobs:
        if scored.slot not in slots:
            raise QuireError(f"step {plan.step} gave logprobs of slot {scored.slot}, which it did not compute")
