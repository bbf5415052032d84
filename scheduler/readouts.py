"""What a step's result holds besides sampled tokens: logprobs of prompts, and embeddings. It fits its plan."""

from __future__ import annotations

from quire.internal.v1 import executor_pb2
from quire.scheduler.sequence import Request, Sequence
from quire.scheduler.step_plan import StepPlan


def new_prompt_logprobs(
    plan: StepPlan, result: executor_pb2.StepResult
) -> list[tuple[Request, executor_pb2.PromptLogprobs]]:
    """What is new of the prompts of requests that go on. Notes how far each prompt is known.

    A prompt that is computed again gives its logprobs again.
    """
    by_slot = dict(zip(plan.slots, plan.sequences, strict=True))
    new = []
    for entry in result.prompt_logprobs:
        sequence = by_slot[entry.slot]
        request, end = sequence.request, entry.start + len(entry.positions)
        if not sequence.is_finished and end > request.num_scored_tokens:
            request.num_scored_tokens = end
            new.append((request, entry))
    return new


def embeddings(plan: StepPlan, result: executor_pb2.StepResult) -> list[tuple[Sequence, bytes]]:
    """The embeddings of sequences that still wait for theirs."""
    pooled = zip(plan.pooled_rows, result.embeddings, strict=True)
    live = [(plan.sequences[row], entry.values) for row, entry in pooled]
    return [(sequence, values) for sequence, values in live if not sequence.is_finished]
