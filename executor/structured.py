"""Structured output: one matcher per sequence, and masks that are ready when the logits are.

A grammar compiles in a thread from the moment its sequence arrives, beside the prefill; the masks of a step are
computed in another thread beside the forward pass. A matcher is fed with the tokens of its sequence that it has not
seen, whether they were sampled in the step before or, after a preemption, all at once: there is no other path.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from quire.errors import QuireError
from quire.executor.sequence import SequenceTable
from quire.executor.token_masks import restrict
from quire.grammars import compile_grammar, load_grammar_tokenizer, reason_of
from quire.internal.v1 import executor_pb2
from quire.kernels import SamplingBatch

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLTokenizer

# Grammars whose compiled form is kept; sequences that use one hold it besides.
_CACHE_SIZE: Final = 64
# The gateway has compiled the same within seconds; this only passes on a machine that is overloaded.
_COMPILE_TIMEOUT_S: Final = 60.0


@dataclass(slots=True, eq=False)
class _Constrained:
    """A sequence with a grammar."""

    compiled: Future[LLMatcher]
    eos_token_ids: frozenset[int]
    # Its own, once it was needed.
    matcher: LLMatcher | None = None
    # Tokens of the output that the matcher has seen.
    num_consumed: int = 0
    # An end-of-sequence token came: the scheduler drops whatever is sampled after it.
    has_ended: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class StepMasks:
    """What the rows of one sampling call may choose from.

    Attributes:
        allowed: uint32 [num_masks, words], see SamplingBatch.allowed_masks.
        mask_rows: int32 [num_rows], into `allowed`; -1 for a row that may choose anything.
        failures: why, by row, for rows whose grammar cannot go on; what is sampled for them is not valid.
    """

    allowed: NDArray[np.uint32]
    mask_rows: NDArray[np.int32]
    failures: dict[int, str] = field(default_factory=dict)

    def apply(self, sampling: SamplingBatch) -> SamplingBatch:
        """The batch, with these masks beside those that its rows have for other reasons."""
        constrained = np.flatnonzero(self.mask_rows >= 0)
        return restrict(sampling, {int(row): self.allowed[self.mask_rows[row]] for row in constrained})


class GrammarTable:
    """The grammars of the sequences, by slot. Used by one thread, which also collects what the others compute."""

    def __init__(self, vocab_size: int, tokenizer_file: Path) -> None:
        self._vocab_size = vocab_size
        self._tokenizer_file = tokenizer_file
        self._sequences: dict[int, _Constrained] = {}
        self._compiled: OrderedDict[tuple[str, tuple[int, ...]], Future[LLMatcher]] = OrderedDict()
        # By end-of-sequence tokens, of which a model has one set; used by the compiling thread alone.
        self._tokenizers: dict[tuple[int, ...], LLTokenizer] = {}
        self._compiling = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._masking = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._executor: LLExecutor | None = None

    def apply(self, plan: executor_pb2.StepPlan) -> None:
        """Forgets finished sequences, and begins to compile for new ones."""
        for slot in np.frombuffer(plan.finished_slots, "<u4").tolist():
            self._sequences.pop(slot, None)
        for message in plan.new_sequences:
            self._sequences.pop(message.slot, None)
            if grammar := message.constraints.grammar:
                eos = tuple(np.frombuffer(message.eos_token_ids, "<u4").tolist())
                self._sequences[message.slot] = _Constrained(self._compile(grammar, eos), frozenset(eos))

    def clear(self) -> None:
        """Forgets every sequence."""
        self._sequences.clear()

    def constrain(self, slots: NDArray[np.int64]) -> bool:
        """Whether one of the slots has a grammar."""
        return bool(self._sequences) and not self._sequences.keys().isdisjoint(slots.tolist())

    def begin(self, slots: NDArray[np.int64], sequences: SequenceTable) -> Callable[[], StepMasks] | None:
        """Starts to compute the masks of a step's rows; None if no row has a grammar.

        Args:
            slots: [num_rows], those that are sampled.
            sequences: must not change until the returned function, which waits for the masks, has been called.
        """
        if not self._sequences:
            return None
        rows = [(row, slot) for row, slot in enumerate(slots.tolist()) if slot in self._sequences]
        if not rows:
            return None
        jobs = [(row, self._sequences[slot], self._unseen(slot, sequences)) for row, slot in rows]
        return self._masking.submit(self._fill, jobs, len(slots)).result

    def _unseen(self, slot: int, sequences: SequenceTable) -> list[int]:
        constrained = self._sequences[slot]
        start = int(sequences.num_prompt_tokens[slot]) + constrained.num_consumed
        unseen: list[int] = sequences.token_ids[slot, start : sequences.num_tokens[slot]].tolist()
        return unseen

    def _fill(self, jobs: Iterable[tuple[int, _Constrained, list[int]]], num_rows: int) -> StepMasks:
        """On the masking thread. It releases the GIL for all but the bookkeeping."""
        from llguidance import LLExecutor

        mask_rows = np.full(num_rows, -1, np.int32)
        failures: dict[int, str] = {}
        matchers: list[tuple[LLMatcher, int]] = []
        rows: list[int] = []
        for row, constrained, token_ids in jobs:
            try:
                matcher = _advance(constrained, token_ids)
            except (QuireError, TimeoutError) as error:
                failures[row] = str(error) or "its grammar was not compiled in time"
                continue
            if not constrained.has_ended:
                mask_rows[row] = len(matchers)
                matchers.append((matcher, len(matchers)))
                rows.append(row)
        # llguidance leaves words beyond its vocabulary as they are.
        allowed = np.zeros((len(matchers), self._mask_words()), np.uint32)
        if matchers:
            if self._executor is None:
                self._executor = LLExecutor()
            self._executor.unsafe_compute_mask_ptr(matchers, allowed.ctypes.data, allowed.strides[0], len(matchers))
        failures |= {
            row: reason_of(matcher) for row, (matcher, _) in zip(rows, matchers, strict=True) if matcher.is_error()
        }
        return StepMasks(allowed, mask_rows, failures)

    def _mask_words(self) -> int:
        """Words of a mask: of the model's vocabulary, or of the tokenizer's if that is larger."""
        sizes = [tokenizer.vocab_size for tokenizer in self._tokenizers.values()]
        return (max(self._vocab_size, *sizes, 0) + 31) // 32

    def _compile(self, grammar: str, eos_token_ids: tuple[int, ...]) -> Future[LLMatcher]:
        key = grammar, eos_token_ids
        if key not in self._compiled:
            self._compiled[key] = self._compiling.submit(self._new_matcher, grammar, eos_token_ids)
            if len(self._compiled) > _CACHE_SIZE:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return self._compiled[key]

    def _new_matcher(self, grammar: str, eos_token_ids: tuple[int, ...]) -> LLMatcher:
        """On the compiling thread."""
        if eos_token_ids not in self._tokenizers:
            tokenizer = load_grammar_tokenizer(self._tokenizer_file, self._vocab_size, eos_token_ids)
            self._tokenizers[eos_token_ids] = tokenizer
        return compile_grammar(self._tokenizers[eos_token_ids], grammar)


def _advance(constrained: _Constrained, token_ids: list[int]) -> LLMatcher:
    """Feeds a matcher with the tokens it has not seen. Raises QuireError if they do not match, or TimeoutError."""
    if constrained.matcher is None:
        constrained.matcher = constrained.compiled.result(_COMPILE_TIMEOUT_S).deep_copy()
    matcher = constrained.matcher
    constrained.num_consumed += len(token_ids)
    if token_ids and not constrained.has_ended:
        constrained.has_ended = token_ids[-1] in constrained.eos_token_ids
        if not constrained.has_ended and not matcher.consume_tokens(token_ids):
            raise QuireError(reason_of(matcher))
    return matcher
