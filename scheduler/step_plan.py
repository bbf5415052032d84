"""A step on its way to an executor: which sequences compute how many tokens, and how that is told in columns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from quire.columns import pack_u32
from quire.internal.v1 import executor_pb2
from quire.scheduler.kv_cache import Allocation
from quire.scheduler.sequence import Sequence

# The one cache group there is so far; a model with several has one block table for each.
CACHE_GROUP = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's part in a step."""

    sequence: Sequence
    slot: int
    num_computed_tokens: int
    num_new_tokens: int
    samples: bool
    is_prefill: bool
    is_new: bool
    allocation: Allocation


@dataclass(slots=True)
class StepPlan:
    """What one executor computes in one step."""

    step: int
    lane: int
    finished_slots: list[int]
    rows: list[Row] = field(default_factory=list)

    @property
    def num_prefill_tokens(self) -> int:
        return sum(row.num_new_tokens for row in self.rows if row.is_prefill)

    @property
    def num_decode_tokens(self) -> int:
        return sum(row.num_new_tokens for row in self.rows if not row.is_prefill)

    def to_proto(self, epoch: int) -> executor_pb2.StepPlan:
        """The message: differences only, in columns."""
        rows = self.rows
        copies = [copy for row in rows for copy in row.allocation.copies]
        return executor_pb2.StepPlan(
            epoch=epoch,
            step=self.step,
            copy_sources=pack_u32(source for source, _ in copies),
            copy_destinations=pack_u32(destination for _, destination in copies),
            finished_slots=pack_u32(self.finished_slots),
            new_sequences=[_introduce(row) for row in rows if row.is_new],
            slots=pack_u32(row.slot for row in rows),
            computed_tokens=pack_u32(row.num_computed_tokens for row in rows),
            query_lengths=pack_u32(row.num_new_tokens for row in rows),
            samples=bytes(row.samples for row in rows),
            block_tables=[_update_block_tables(row.allocation for row in rows)],
        )


def _introduce(row: Row) -> executor_pb2.NewSequence:
    sequence, request = row.sequence, row.sequence.request
    return executor_pb2.NewSequence(
        slot=row.slot,
        sequence_index=sequence.index,
        prompt_token_ids=sequence.token_ids[: sequence.num_prompt_tokens].tobytes(),
        output_token_ids=sequence.token_ids[sequence.num_prompt_tokens :].tobytes(),
        sampling_params=request.params,
        eos_token_ids=pack_u32(sorted(request.eos_token_ids)),
    )


def _update_block_tables(allocations: Iterable[Allocation]) -> executor_pb2.BlockTableUpdate:
    changes = list(allocations)
    return executor_pb2.BlockTableUpdate(
        cache_group=CACHE_GROUP,
        kept=pack_u32(change.num_kept for change in changes),
        appended=pack_u32(len(change.appended) for change in changes),
        block_ids=pack_u32(block.id for change in changes for block in change.appended),
    )
