"""Beam search over one prompt: which beams go on, which hypotheses are kept, and when the search is over.

Pure logic over log-probabilities; `beam_group.py` gives it sequences and blocks. It ends where the beam search of
Hugging Face transformers ends, with the same hypotheses: at every step the candidates are the likeliest continuations
of all beams together. One that is complete (its last token ends it, or it is as long as an output may be) becomes a
hypothesis if it is among the first `width` of them, and the first `width` that are not complete are the next beams.

A hypothesis' score is its logprob divided by its length to the power of `length_penalty`. The length counts the
tokens of the output alone, the one that ended it included.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from quire.v1 import generate_pb2

# (token id, logprob)
Candidate = tuple[int, float]

_TRUE: Final = generate_pb2.EARLY_STOPPING_TRUE
_NEVER: Final = generate_pb2.EARLY_STOPPING_NEVER


@dataclass(frozen=True, slots=True)
class Beam:
    """An output that is not complete, and the sum of its tokens' logprobs."""

    token_ids: Sequence[int]
    logprob: float


@dataclass(frozen=True, slots=True)
class Continuation:
    """A beam of the next step: the `parent`-th beam of this one and one more token."""

    parent: int
    token_id: int
    # Of the whole output.
    logprob: float


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A complete output."""

    token_ids: tuple[int, ...]
    logprob: float
    score: float
    # By its last token; if not, by its length.
    is_ended: bool


@dataclass(slots=True)
class BeamSearch:
    """The state of one search.

    width: beams, and hypotheses that are kept.
    ending_token_ids: tokens that complete an output, though not before it has `min_tokens`.
    max_tokens: the longest output.
    """

    width: int
    ending_token_ids: frozenset[int]
    min_tokens: int
    max_tokens: int
    length_penalty: float = 1.0
    early_stopping: generate_pb2.EarlyStopping.ValueType = generate_pb2.EARLY_STOPPING_UNSPECIFIED
    # Best first.
    hypotheses: list[Hypothesis] = field(default_factory=list)

    @property
    def num_candidates(self) -> int:
        """How many of a beam's likeliest next tokens `advance` must see.

        Each may be an ending one, which does not go on, and all that go on may come from one beam.
        """
        return self.width + len(self.ending_token_ids)

    def advance(self, beams: Sequence[Beam], candidates: Sequence[Iterable[Candidate]]) -> list[Continuation]:
        """The beams of the next step, likeliest first; none once the search is over.

        Args:
            beams: all of one length. One before the first step, `width` after it.
            candidates: for each beam its `num_candidates` likeliest next tokens.
        """
        length = len(beams[0].token_ids) + 1
        may_end = length > self.min_tokens
        # Stable: of equals the earlier beam's comes first. Of these at least `width` go on: a beam ends in each of the
        # ending tokens once at most.
        likeliest = heapq.nsmallest(
            (1 + len(self.ending_token_ids)) * self.width,
            (
                (parent, token_id, beam.logprob + logprob)
                for parent, (beam, tokens) in enumerate(zip(beams, candidates, strict=True))
                for token_id, logprob in tokens
                if may_end or token_id not in self.ending_token_ids
            ),
            key=lambda entry: -entry[2],
        )
        ranked = [Continuation(*entry) for entry in likeliest]
        is_last = length == self.max_tokens
        for continuation in ranked[: self.width]:
            is_ended = continuation.token_id in self.ending_token_ids
            if is_ended or is_last:
                self._keep(beams[continuation.parent], continuation, is_ended=is_ended)
        if is_last:
            return []
        going_on = [entry for entry in ranked if entry.token_id not in self.ending_token_ids][: self.width]
        return [] if self._is_over(going_on[0].logprob, length) else going_on

    def _keep(self, parent: Beam, last: Continuation, *, is_ended: bool) -> None:
        token_ids = (*parent.token_ids, last.token_id)
        score = self._score(last.logprob, len(token_ids))
        self.hypotheses.append(Hypothesis(token_ids, last.logprob, score, is_ended))
        # Stable: of equals the older one stays.
        self.hypotheses.sort(key=lambda hypothesis: -hypothesis.score)
        del self.hypotheses[self.width :]

    def _is_over(self, best_logprob: float, length: int) -> bool:
        """Whether the best unfinished beam has no chance any more (see EarlyStopping in generate.proto)."""
        if len(self.hypotheses) < self.width:
            return False
        if self.early_stopping == _TRUE:
            return True
        # A logprob only falls; a positive penalty favours length, so the longest output is the best it can become.
        hopes_for_length = self.early_stopping == _NEVER and self.length_penalty > 0
        reached = self._score(best_logprob, self.max_tokens if hopes_for_length else length)
        return reached <= self.hypotheses[-1].score

    def _score(self, logprob: float, length: int) -> float:
        factor: float = length**self.length_penalty
        return logprob / factor
