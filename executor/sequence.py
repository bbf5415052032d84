"""What the executor keeps of the sequences between steps, in arrays indexed by slot.

So that what a step does to its rows is a fixed number of array operations, however many the rows are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quire.errors import QuireError
from quire.executor.readouts import Readout, readout_of
from quire.executor.sampling_table import SamplingTable
from quire.internal.v1 import executor_pb2
from quire.kernels import SamplingBatch

# Sizes to start with; all grow.
_SLOTS: Final = 64
_TOKENS: Final = 1024
_BLOCKS: Final = 64

_COLUMNS: Final = ("num_tokens", "num_prompt_tokens", "num_blocks", "num_unknown", "_generations")


@dataclass(frozen=True, slots=True, eq=False)
class UnknownTokens:
    """Tokens that a step in flight samples, one for each row.

    Attributes:
        slots: int64 [n], of their sequences.
        positions: int64 [n], in them.
        generations: int64 [n]; tells a sequence from one that had its slot before.
    """

    slots: NDArray[np.int64]
    positions: NDArray[np.int64]
    generations: NDArray[np.int64]


class SequenceTable:
    """The sequences by slot.

    Attributes:
        num_tokens: int64 [slots], prompt and output; 0 where there is no sequence.
        num_prompt_tokens: int64 [slots].
        num_blocks: int64 [slots].
        num_unknown: int64 [slots], the last tokens whose ids are not known here yet: steps in flight sample them.
        token_ids: int32 [slots, capacity], prompt and output; ~slot, which is negative, for an unknown one.
        block_tables: int32 [slots, capacity].
        readouts: of the sequences that want more than sampled tokens, by slot.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self.clear()

    def clear(self) -> None:
        """Forgets every sequence."""
        self.num_tokens = np.zeros(_SLOTS, np.int64)
        self.num_prompt_tokens = np.zeros(_SLOTS, np.int64)
        self.num_blocks = np.zeros(_SLOTS, np.int64)
        self.num_unknown = np.zeros(_SLOTS, np.int64)
        # How many sequences a slot has had or lost.
        self._generations = np.zeros(_SLOTS, np.int64)
        self.token_ids = np.zeros((_SLOTS, _TOKENS), np.int32)
        self.block_tables = np.zeros((_SLOTS, _BLOCKS), np.int32)
        self.readouts: dict[int, Readout] = {}
        self._sampling = SamplingTable(self._vocab_size, _SLOTS)

    def __len__(self) -> int:
        return int(np.count_nonzero(self.num_tokens))

    def apply(self, plan: executor_pb2.StepPlan) -> None:
        """Forgets finished sequences, takes in new ones and chosen tokens; a new one replaces what its slot held.

        Raises QuireError for a plan that contradicts what is known.
        """
        for slot in np.frombuffer(plan.finished_slots, "<u4").tolist():
            if slot < len(self.num_tokens):
                self.num_tokens[slot] = 0
                self._forget_unknown(slot)
                self._sampling.forget(slot)
                self.readouts.pop(slot, None)
        for message in plan.new_sequences:
            self._put(message)
        if plan.chosen_slots:
            self._choose(
                np.frombuffer(plan.chosen_slots, "<u4").astype(np.int64), np.frombuffer(plan.chosen_token_ids, "<u4")
            )

    def lengths(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """num_tokens of slots, [n]. Raises QuireError for a slot that holds no sequence."""
        if len(slots) and (highest := np.maximum.reduce(slots)) >= len(self.num_tokens):
            raise QuireError(f"the plan names slot {highest}, which holds no sequence")
        lengths = self.num_tokens[slots]
        if np.count_nonzero(lengths) != len(slots):
            raise QuireError(f"the plan names slot {slots[lengths.argmin()]}, which holds no sequence")
        return lengths

    def update_blocks(
        self,
        slots: NDArray[np.int64],
        kept: NDArray[np.int64],
        appended: NDArray[np.int64],
        block_ids: NDArray[np.uint32],
    ) -> None:
        """Keeps the first kept[i] blocks of slots[i] and appends the next appended[i] of `block_ids`.

        Raises QuireError for a sequence that has fewer.
        """
        known = self.num_blocks[slots]
        missing = kept > known
        if np.count_nonzero(missing):
            row = int(missing.argmax())
            raise QuireError(f"the plan keeps {kept[row]} blocks of slot {slots[row]}, which has {known[row]}")
        ends = kept + appended
        if len(block_ids):
            self.block_tables = _with_columns(self.block_tables, int(ends.max()))
            # Where each id stands among its row's.
            index = np.arange(len(block_ids)) - np.repeat(appended.cumsum() - ends, appended)
            self.block_tables[np.repeat(slots, appended), index] = block_ids
        self.num_blocks[slots] = ends

    def append(self, slots: NDArray[np.int64], token_ids: NDArray[np.int32]) -> None:
        """A token was sampled for each of the slots, of which there is one at least."""
        lengths = self.num_tokens[slots]
        self.token_ids = _with_columns(self.token_ids, int(np.maximum.reduce(lengths)) + 1)
        self.token_ids[slots, lengths] = token_ids
        self.num_tokens[slots] = lengths + 1

    def append_unknown(self, slots: NDArray[np.int64]) -> UnknownTokens:
        """A token will be sampled for each of the slots; `fill` says which."""
        tokens = UnknownTokens(slots, self.num_tokens[slots], self._generations[slots])
        self.append(slots, (~slots).astype(np.int32))
        self.num_unknown[slots] += 1
        return tokens

    def fill(self, tokens: UnknownTokens, token_ids: NDArray[np.int32]) -> None:
        """What was sampled. Of sequences that are gone, be their slots in use again or not, nothing is kept."""
        here = self._generations[tokens.slots] == tokens.generations
        slots, positions = tokens.slots[here], tokens.positions[here]
        self.num_unknown[slots] -= 1
        # Elsewhere the scheduler has chosen a token meanwhile.
        unknown = self.token_ids[slots, positions] < 0
        self.token_ids[slots[unknown], positions[unknown]] = token_ids[here][unknown]

    def reads_history(self, slots: NDArray[np.int64]) -> bool:
        """Whether sampling for one of the slots depends on the ids of all its tokens."""
        return self._sampling.reads_history(slots)

    def _choose(self, slots: NDArray[np.int64], token_ids: NDArray[np.uint32]) -> None:
        """Replaces the last tokens of slots. Raises QuireError for columns that do not fit."""
        if len(slots) != len(token_ids):
            raise QuireError("the columns of the plan's chosen tokens differ in length")
        self.token_ids[slots, self.lengths(slots) - 1] = token_ids

    def sampling_batch(self, slots: NDArray[np.int64]) -> SamplingBatch:
        """How the next tokens of the slots are sampled."""
        return self._sampling.batch(slots, self.num_tokens[slots], self.token_ids)

    def _put(self, message: executor_pb2.NewSequence) -> None:
        prompt = np.frombuffer(message.prompt_token_ids, "<u4")
        output = np.frombuffer(message.output_token_ids, "<u4")
        slot, num_tokens = message.slot, len(prompt) + len(output)
        if not num_tokens:
            raise QuireError(f"the plan puts a sequence without tokens into slot {slot}")
        self._reserve_slot(slot)
        self.token_ids = _with_columns(self.token_ids, num_tokens)
        self.token_ids[slot, : len(prompt)] = prompt
        self.token_ids[slot, len(prompt) : num_tokens] = output
        self.num_tokens[slot] = num_tokens
        self.num_prompt_tokens[slot] = len(prompt)
        self.num_blocks[slot] = 0
        self._forget_unknown(slot)
        self._sampling.put(message)
        self.readouts.pop(slot, None)
        if (readout := readout_of(message)) is not None:
            self.readouts[slot] = readout

    def _forget_unknown(self, slot: int) -> None:
        """The slot's tokens in flight are nobody's."""
        self.num_unknown[slot] = 0
        self._generations[slot] += 1

    def _reserve_slot(self, slot: int) -> None:
        if slot < len(self.num_tokens):
            return
        size = max(slot + 1, 2 * len(self.num_tokens))
        for name in (*_COLUMNS, "token_ids", "block_tables"):
            array: NDArray[Any] = getattr(self, name)
            setattr(self, name, _extended(array, (size, *array.shape[1:])))
        self._sampling.grow(size)


def _with_columns(table: NDArray[np.int32], columns: int) -> NDArray[np.int32]:
    """The table, or a wider copy. Pages that nothing was written to take no memory."""
    if columns <= table.shape[1]:
        return table
    return _extended(table, (table.shape[0], max(columns, 2 * table.shape[1])))


def _extended(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """A copy with zeros beyond the old shape."""
    larger = np.zeros(shape, array.dtype)
    larger[tuple(slice(size) for size in array.shape)] = array
    return larger
