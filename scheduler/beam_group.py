"""The beams of one request: sequences that start, move on, lose their blocks and end together.

A beam is a sequence whose next token the search chooses, not the sampler. Of the continuations of one beam the
likeliest goes on in its place. The others take the places of beams that died, and share its blocks: whoever writes the
last, partly filled block first gets a copy of it (see `KvCache`). So k beams hold one copy of what they have in common.

All beams have a slot from the request's admission to its end, so that two searches can never wait for slots of each
other. One that has no tokens to compute (before the first choice, and after a preemption until the leader's tokens are
computed) has `num_tokens` 0.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import takewhile

from quire.internal.v1 import executor_pb2
from quire.scheduler.beam_search import Beam, BeamSearch, Candidate, Continuation, Hypothesis
from quire.scheduler.kv_cache import KvCache
from quire.scheduler.sequence import RequestKey, Sequence, SequenceStatus
from quire.scheduler.step_plan import StepPlan
from quire.v1 import generate_pb2


class BeamGroup:
    """The sequences of one beam search."""

    def __init__(self, search: BeamSearch, sequences: list[Sequence], num_returned: int) -> None:
        self.search = search
        # In order of arrival. Any of them may hold any of the beams, but for the leader there always is one.
        self.sequences = sequences
        self._num_returned = num_returned
        # The beams, likeliest first; the prompt alone before the first choice.
        self._beams = sequences[:1]
        # Likeliest next tokens by sequence index, as far as results have come.
        self._candidates: dict[int, list[Candidate]] = {}
        for sequence in sequences:
            sequence.beams = self
        self.lose_blocks()

    @classmethod
    def of(cls, sequences: list[Sequence]) -> BeamGroup:
        """A new search of a request that has as many sequences as beams."""
        leader = sequences[0]
        params = leader.request.params
        search = BeamSearch(
            width=len(sequences),
            ending_token_ids=leader.request.ending_token_ids,
            min_tokens=params.min_tokens,
            max_tokens=leader.max_num_tokens - leader.num_prompt_tokens,
            length_penalty=params.length_penalty,
            early_stopping=params.early_stopping,
        )
        return cls(search, sequences, params.n)

    @property
    def leader(self) -> Sequence:
        """Computes the prompt, stands in the queue for all, and is computed first after a preemption."""
        return self.sequences[0]

    @property
    def hypotheses(self) -> list[Hypothesis]:
        """What the request gets once the search is over, best first."""
        return self.search.hypotheses[: self._num_returned]

    def chunks(self, budget: int) -> list[tuple[Sequence, int]]:
        """The beams that have tokens to compute, and how many of them the budget allows."""
        chunks = []
        for sequence in self.sequences:
            num_new = min(sequence.num_uncomputed_tokens, budget)
            if num_new:
                chunks.append((sequence, num_new))
                budget -= num_new
        return chunks

    def lose_blocks(self) -> None:
        """All beams have been preempted. What steps in flight say of them is not heard."""
        self._candidates.clear()
        # The leader comes back when no step in flight names any of the beams, be it on another lane.
        last_step = max(sequence.last_step for sequence in self.sequences)
        for sequence in self.sequences:
            sequence.num_tokens = sequence.last_step = 0
        self.leader.num_tokens = len(self.leader.token_ids)
        self.leader.last_step = last_step

    def record(self, sequence: Sequence, logprobs: generate_pb2.TokenLogprobs) -> None:
        """Takes in the likeliest next tokens of a beam."""
        candidates = zip(logprobs.top_token_ids, logprobs.top_logprobs, strict=True)
        self._candidates[sequence.index] = list(candidates)

    def advance(self, kv_cache: KvCache) -> list[Sequence] | None:
        """Chooses the next beams if the candidates of all are known.

        Returns:
            The sequences that go on in their place with one more token; None when the search is over.
        """
        if len(self._candidates) < len(self._beams):
            self._follow_leader(kv_cache)
            return []
        beams = [Beam(_output(sequence), sequence.cumulative_logprob) for sequence in self._beams]
        candidates = [self._candidates[sequence.index] for sequence in self._beams]
        self._candidates.clear()
        continuations = self.search.advance(beams, candidates)
        return self._take_places(continuations, kv_cache) if continuations else None

    def _take_places(self, continuations: list[Continuation], kv_cache: KvCache) -> list[Sequence]:
        parents = self._beams
        named = {continuation.parent for continuation in continuations}
        spare = [sequence for sequence in self.sequences if sequence not in [parents[i] for i in named]]
        for sequence in spare:
            kv_cache.release(sequence)
        going_on: list[Sequence] = []
        forks: list[tuple[Sequence, Sequence]] = []
        self._beams = []
        for continuation in continuations:
            parent = sequence = parents[continuation.parent]
            if parent in going_on:
                sequence = spare.pop()
                forks.append((parent, sequence))
            else:
                going_on.append(parent)
            self._beams.append(sequence)
        # Before a parent gets its own next token.
        for parent, sequence in forks:
            sequence.token_ids = array("I", parent.token_ids)
            kv_cache.fork(parent, sequence, parent.num_computed_tokens)
        for sequence, continuation in zip(self._beams, continuations, strict=True):
            sequence.token_ids.append(continuation.token_id)
            sequence.num_tokens = len(sequence.token_ids)
            sequence.cumulative_logprob = continuation.logprob
        return going_on

    def _follow_leader(self, kv_cache: KvCache) -> None:
        """After a preemption, once the leader's tokens are computed: the others share what they have in common."""
        leader = self.leader
        if leader.index not in self._candidates:
            return
        for sequence in self._beams:
            if not sequence.num_tokens:
                pairs = zip(leader.token_ids, sequence.token_ids, strict=True)
                num_common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
                kv_cache.fork(leader, sequence, num_common)
                sequence.num_tokens = len(sequence.token_ids)


def members(sequence: Sequence) -> list[Sequence]:
    """The sequences that start and lose their blocks together."""
    return [sequence] if sequence.beams is None else sequence.beams.sequences


def next_chunks(sequence: Sequence, budget: int) -> list[tuple[Sequence, int]]:
    """What to compute of a running sequence; of beams, all at once, where their leader stands."""
    if sequence.beams is not None:
        return sequence.beams.chunks(budget) if sequence is sequence.beams.leader else []
    num_new = min(sequence.num_uncomputed_tokens, budget)
    return [(sequence, num_new)] if num_new else []


def record_candidates(plan: StepPlan, sampled: list[Sequence], result: executor_pb2.StepResult) -> Iterable[BeamGroup]:
    """Gives beams that still run their likeliest next tokens; returns the searches that got any."""
    if all(plan.sequences[chunk.row].beams is None for chunk in plan.chunks):
        return ()
    logprobs = {entry.row: entry.logprobs for entry in result.logprobs}
    touched: dict[RequestKey, BeamGroup] = {}
    for row, sequence in enumerate(sampled):
        if sequence.beams is not None and sequence.status is SequenceStatus.RUNNING:
            sequence.beams.record(sequence, logprobs[row])
            touched[sequence.request.key] = sequence.beams
    return touched.values()


def _output(sequence: Sequence) -> array[int]:
    return sequence.token_ids[sequence.num_prompt_tokens :]
