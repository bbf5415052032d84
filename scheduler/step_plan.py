"""A step on its way to an executor: which sequences compute how many tokens, and how that is told in columns."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from itertools import compress

from quire.columns import pack_u32
from quire.internal.v1 import executor_pb2
from quire.scheduler.kv_cache import Allocation
from quire.scheduler.sequence import Sequence
from quire.scheduler.swap_tier import SwapMoves

# The one cache group there is so far; a model with several has one block table for each.
CACHE_GROUP = 0


@dataclass(slots=True)
class Chunk:
    """A row that is more than a plain decode: several tokens, a prompt's, or with another block table."""

    row: int
    num_new_tokens: int
    samples: bool
    is_prefill: bool
    is_new: bool
    allocation: Allocation


@dataclass(slots=True)
class SlotChanges:
    """What an executor has not been told yet of the sequences it knows."""

    # Slots whose sequence is gone.
    finished: list[int] = field(default_factory=list)
    # By slot: the token that a beam goes on with.
    chosen: dict[int, int] = field(default_factory=dict)


class StepPlan:
    """What one executor computes in one step.

    Columns with one row per sequence. Most rows are plain decodes: one token, sampled from, in a block that the
    executor knows. These are in the first columns only; a row that differs has a `Chunk` that says how.
    """

    __slots__ = (
        "budget",
        "changes",
        "chunks",
        "computed_tokens",
        "kept",
        "lane",
        "moves",
        "pooled_rows",
        "sequences",
        "slots",
        "step",
    )

    def __init__(self, step: int, lane: int, budget: int, changes: SlotChanges) -> None:
        self.step = step
        self.lane = lane
        # Tokens that may still be planned.
        self.budget = budget
        self.changes = changes
        self.sequences: list[Sequence] = []
        self.computed_tokens: list[int] = []
        self.chunks: list[Chunk] = []
        # Rows whose sequences get their embedding in this step.
        self.pooled_rows: list[int] = []
        self.moves: SwapMoves | None = None
        # Made by `seal`.
        self.slots: list[int] = []
        self.kept: list[int] = []

    def add_chunk(self, sequence: Sequence, num_new_tokens: int, allocation: Allocation, *, is_new: bool) -> Chunk:
        """Plans the next tokens of a sequence that does not count them as computed yet."""
        computed = sequence.num_computed_tokens
        is_last = computed + num_new_tokens == sequence.num_tokens
        samples = is_last and not sequence.request.is_pooling
        if is_last and not samples:
            self.pooled_rows.append(len(self.sequences))
        is_prefill = num_new_tokens > 1 or not samples or computed < sequence.num_prompt_tokens
        chunk = Chunk(len(self.sequences), num_new_tokens, samples, is_prefill, is_new, allocation)
        self.chunks.append(chunk)
        self.sequences.append(sequence)
        self.computed_tokens.append(computed)
        self.budget -= num_new_tokens
        return chunk

    def seal(self) -> None:
        """Notes what later steps change: the plan is complete."""
        self.slots = [sequence.slot for sequence in self.sequences]  # type: ignore[misc]  # all of them run
        self.kept = [sequence.num_sent_blocks for sequence in self.sequences]

    @property
    def query_lengths(self) -> array[int]:
        """Tokens to compute, by row."""
        column = array("I", (1,)) * len(self.sequences)
        for chunk in self.chunks:
            column[chunk.row] = chunk.num_new_tokens
        return column

    @property
    def samples(self) -> bytearray:
        """1 where a token is sampled, by row."""
        column = bytearray(b"\1") * len(self.sequences)
        for chunk in self.chunks:
            column[chunk.row] = chunk.samples
        return column

    @property
    def sampled(self) -> list[Sequence]:
        """The sequences that get a token, in row order."""
        if all(chunk.samples for chunk in self.chunks):
            return self.sequences
        return list(compress(self.sequences, self.samples))

    @property
    def num_prefill_tokens(self) -> int:
        return sum([chunk.num_new_tokens for chunk in self.chunks if chunk.is_prefill])

    @property
    def num_decode_tokens(self) -> int:
        return len(self.sequences) - sum([chunk.is_prefill for chunk in self.chunks])

    def to_proto(self, epoch: int) -> executor_pb2.StepPlan:
        """The message: differences only, in columns."""
        message = executor_pb2.StepPlan(
            epoch=epoch,
            step=self.step,
            slots=pack_u32(self.slots),
            computed_tokens=pack_u32(self.computed_tokens),
            query_lengths=self.query_lengths.tobytes(),
            samples=bytes(self.samples),
        )
        # An empty field costs as much as a full one.
        if self.changes.finished:
            message.finished_slots = pack_u32(self.changes.finished)
        if chosen := self.changes.chosen:
            message.chosen_slots = pack_u32(chosen)
            message.chosen_token_ids = pack_u32(chosen.values())
        if (moves := self.moves) is not None:
            message.swap_out_sources = pack_u32(moves.out_sources)
            message.swap_out_destinations = pack_u32(moves.out_destinations)
            message.swap_in_sources = pack_u32(moves.in_sources)
            message.swap_in_destinations = pack_u32(moves.in_destinations)
        if copies := [copy for chunk in self.chunks for copy in chunk.allocation.copies]:
            message.copy_sources = pack_u32([source for source, _ in copies])
            message.copy_destinations = pack_u32([destination for _, destination in copies])
        for chunk in self.chunks:
            if chunk.is_new:
                self._introduce(chunk.row, message.new_sequences.add())
        self._update_block_tables(message.block_tables.add(cache_group=CACHE_GROUP))
        return message

    def _introduce(self, row: int, new: executor_pb2.NewSequence) -> None:
        sequence = self.sequences[row]
        new.slot = self.slots[row]
        new.sequence_index = sequence.index
        new.prompt_token_ids = sequence.token_ids[: sequence.num_prompt_tokens].tobytes()
        new.output_token_ids = sequence.token_ids[sequence.num_prompt_tokens :].tobytes()
        new.sampling_params.CopyFrom(sequence.request.params)
        if sequence.beams is not None:
            new.sampling_params.logprobs = sequence.beams.search.num_candidates
        new.eos_token_ids = pack_u32(sorted(sequence.request.eos_token_ids))
        new.constraints.CopyFrom(sequence.request.constraints)
        new.pooling = sequence.request.pooling
        if not sequence.wants_prompt_logprobs:
            new.sampling_params.ClearField("prompt_logprobs")

    def _update_block_tables(self, update: executor_pb2.BlockTableUpdate) -> None:
        kept = array("I", self.kept)
        appended = array("I", (0,)) * len(kept)
        block_ids = array("I")
        for chunk in self.chunks:
            change = chunk.allocation
            kept[chunk.row] = change.num_kept
            appended[chunk.row] = len(change.appended)
            block_ids.extend([block.id for block in change.appended])
        update.kept = kept.tobytes()
        update.appended = appended.tobytes()
        update.block_ids = block_ids.tobytes()
