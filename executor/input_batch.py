"""A step plan and the sequences it names → what one forward pass computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire.errors import QuireError
from quire.executor.sequence import SequenceTable
from quire.internal.v1 import executor_pb2
from quire.kernels import AttentionMetadata

_U32: Final = np.dtype("<u4")


@dataclass(frozen=True, slots=True, eq=False)
class BatchArrays:
    """The tokens of a step, all sequences behind one another, on the host. All arrays are contiguous.

    Attributes:
        token_ids, positions: int32 [num_tokens].
        rotary_lengths: int32 [num_tokens] for dynamic NTK (see RotaryEmbedding.cos_sin), else None.
        query_start, context_lens, block_tables, slot_mapping: see AttentionMetadata.
        logit_rows: int32 [num_sampled], the tokens whose logits are wanted.
    """

    token_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    rotary_lengths: NDArray[np.int32] | None
    query_start: NDArray[np.int32]
    context_lens: NDArray[np.int32]
    block_tables: NDArray[np.int32]
    slot_mapping: NDArray[np.int64]
    logit_rows: NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class BatchTensors:
    """BatchArrays as tensors on the model's device."""

    token_ids: Tensor
    positions: Tensor
    rotary_lengths: Tensor | None
    attention: AttentionMetadata
    logit_rows: Tensor

    @classmethod
    def of(cls, columns: Mapping[str, Tensor], block_tables: Tensor) -> BatchTensors:
        """Of one tensor for each field of BatchArrays; rotary_lengths may be missing."""
        attention = AttentionMetadata(
            columns["query_start"], columns["context_lens"], block_tables, columns["slot_mapping"]
        )
        return cls(
            columns["token_ids"], columns["positions"], columns.get("rotary_lengths"), attention, columns["logit_rows"]
        )


@dataclass(frozen=True, eq=False)
class InputBatch:
    """What a step computes; the same as arrays, and as tensors on the model's device.

    Attributes:
        sampled: int64 [num_sampled], the slots of `logit_rows`; of a padded step, those of its first rows.
        staged: the tensors, where they were made already; else they are made when asked for.
    """

    arrays: BatchArrays
    device: torch.device
    sampled: NDArray[np.int64]
    staged: BatchTensors | None = None

    @property
    def token_ids(self) -> Tensor:
        return self._tensors.token_ids

    @property
    def positions(self) -> Tensor:
        return self._tensors.positions

    @property
    def rotary_lengths(self) -> Tensor | None:
        return self._tensors.rotary_lengths

    @property
    def attention(self) -> AttentionMetadata:
        return self._tensors.attention

    @property
    def logit_rows(self) -> Tensor:
        return self._tensors.logit_rows

    @cached_property
    def _tensors(self) -> BatchTensors:
        if self.staged is not None:
            return self.staged
        arrays = {name: getattr(self.arrays, name) for name in BatchArrays.__slots__}
        columns = {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items() if array is not None}
        return BatchTensors.of(columns, columns["block_tables"])


@dataclass(frozen=True, slots=True, eq=False)
class PlanRows:
    """The row columns of a plan, as arrays [num_rows]."""

    slots: NDArray[np.int64]
    computed: NDArray[np.int64]
    query_lengths: NDArray[np.int64]
    samples: NDArray[np.bool_]

    @classmethod
    def of(cls, plan: executor_pb2.StepPlan, sequences: SequenceTable) -> PlanRows:
        """Raises QuireError for a plan that contradicts itself or what is known of its sequences."""
        columns = _columns(plan.slots, plan.computed_tokens, plan.query_lengths)
        if columns is None or len(plan.samples) != columns.shape[1]:
            raise QuireError("the columns of the plan differ in length")
        samples = np.frombuffer(plan.samples, np.uint8).astype(np.bool_)
        rows = cls(columns[0], columns[1], columns[2], samples)
        known = sequences.lengths(rows.slots)
        beyond = known - (rows.computed + rows.query_lengths)
        # A token is sampled after the last known one, and nowhere else.
        wrong = (rows.query_lengths < 1) | (beyond < 0) | (samples & (beyond > 0))
        if np.count_nonzero(wrong):
            row = int(wrong.argmax())
            raise QuireError(
                f"the plan computes tokens {rows.computed[row]} to {rows.computed[row] + rows.query_lengths[row]} "
                f"of slot {rows.slots[row]} (sampled: {bool(samples[row])}), which has {known[row]} tokens"
            )
        return rows


def update_block_tables(plan: executor_pb2.StepPlan, rows: PlanRows, sequences: SequenceTable) -> None:
    """Brings the sequences' block tables up to the plan. Raises QuireError for columns that do not fit."""
    num_rows = len(rows.slots)
    updates = plan.block_tables
    if [update.cache_group for update in updates] != [0] and num_rows:
        raise QuireError("the plan must update the block tables of cache group 0 and of no other")
    for update in updates:
        columns = _columns(update.kept, update.appended)
        block_ids = np.frombuffer(update.block_ids, _U32)
        if columns is None or columns.shape[1] != num_rows or np.add.reduce(columns[1]) != len(block_ids):
            raise QuireError("the columns of the plan's block tables differ in length")
        sequences.update_blocks(rows.slots, columns[0], columns[1], block_ids)


def build_input_batch(
    rows: PlanRows, sequences: SequenceTable, block_size: int, device: torch.device, *, rotary_lengths: bool
) -> InputBatch:
    """The tokens of a step. Raises QuireError for a sequence whose block table is too short."""
    num_rows = len(rows.slots)
    query_start = np.zeros(num_rows + 1, np.int32)
    np.add.accumulate(rows.query_lengths, out=query_start[1:])
    context_lens = rows.computed + rows.query_lengths
    num_blocks = _blocks_needed(rows, sequences, context_lens, block_size)

    # Of each token: its sequence's slot, and its position there.
    if query_start[-1] == num_rows:
        slots, positions = rows.slots, rows.computed
    else:
        row_of_token = np.repeat(np.arange(num_rows), rows.query_lengths)
        slots = rows.slots[row_of_token]
        positions = np.arange(query_start[-1]) + (rows.computed - query_start[:-1])[row_of_token]
    columns, offsets = np.divmod(positions, block_size)
    slot_mapping = sequences.block_tables[slots, columns].astype(np.int64) * block_size + offsets

    lengths = None
    if rotary_lengths:
        lengths = np.maximum(sequences.num_prompt_tokens[slots], positions + 1)

    arrays = BatchArrays(
        sequences.token_ids[slots, positions],
        positions.astype(np.int32),
        None if lengths is None else lengths.astype(np.int32),
        query_start,
        context_lens.astype(np.int32),
        sequences.block_tables[rows.slots, :num_blocks],
        slot_mapping,
        query_start[1:][rows.samples] - np.int32(1),
    )
    return InputBatch(arrays, device, rows.slots[rows.samples])


def _blocks_needed(rows: PlanRows, sequences: SequenceTable, context_lens: NDArray[np.int64], block_size: int) -> int:
    """By the longest sequence."""
    needed = (context_lens + (block_size - 1)) // block_size
    known = sequences.num_blocks[rows.slots]
    missing = known < needed
    if np.count_nonzero(missing):
        row = int(missing.argmax())
        raise QuireError(f"slot {rows.slots[row]} has {known[row]} blocks and needs {needed[row]} for this step")
    return int(np.maximum.reduce(needed))


def _columns(*packed: bytes) -> NDArray[np.int64] | None:
    """u32 columns of equal length, [number of columns, length], or None where their lengths differ.

    int64, as numpy indexes with it.
    """
    size = len(packed[0])
    if size % 4 or any(len(column) != size for column in packed):
        return None
    return np.frombuffer(b"".join(packed), _U32).astype(np.int64).reshape(len(packed), size // 4)
