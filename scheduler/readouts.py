"""What a step's result, which fits its plan, says besides sampled tokens: who started, logprobs and embeddings."""

from __future__ import annotations

import itertools

from quire.internal.v1 import executor_pb2
from quire.scheduler.sequence import Request, Sequence
from quire.scheduler.step_plan import StepPlan
from quire.v1 import generate_pb2


def first_run(plan: StepPlan) -> list[Request]:
    """Requests that get their first token in this step; each is named once."""
    started = []
    for chunk in plan.chunks:
        sequence = plan.sequences[chunk.row]
        if chunk.samples and not sequence.request.start_reported and not sequence.is_finished:
            sequence.request.start_reported = True
            started.append(sequence.request)
    return started


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


def logprobs_of_live(sampled: list[Sequence], result: executor_pb2.StepResult) -> dict[int, generate_pb2.TokenLogprobs]:
    """Logprobs by row among those rows of a result whose sequences go on."""
    if not result.logprobs:
        return {}
    live = [not sequence.is_finished and sequence.beams is None for sequence in sampled]
    rows = list(itertools.accumulate(live, initial=0))
    return {rows[entry.row]: entry.logprobs for entry in result.logprobs if live[entry.row]}
