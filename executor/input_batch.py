"""A step plan and the sequences it names → the tensors of one forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire.errors import QuireError
from quire.executor.sequence import Sequence, SequenceTable
from quire.internal.v1 import executor_pb2
from quire.kernels import AttentionMetadata


@dataclass(frozen=True, slots=True, eq=False)
class InputBatch:
    """The tokens of a step, all sequences behind one another.

    Attributes:
        token_ids, positions: int64 [num_tokens].
        rotary_lengths: int64 [num_tokens] for dynamic NTK (see RotaryEmbedding.cos_sin), else None.
        attention: which sequence each token belongs to and where its KV goes.
        logit_rows: int64 [num_sampled], the tokens whose logits are wanted.
        sampled: the sequences of `logit_rows`.
    """

    token_ids: Tensor
    positions: Tensor
    rotary_lengths: Tensor | None
    attention: AttentionMetadata
    logit_rows: Tensor
    sampled: list[Sequence]


@dataclass(frozen=True, slots=True, eq=False)
class PlanRows:
    """The row columns of a plan, as arrays [num_rows]."""

    sequences: list[Sequence]
    computed: NDArray[np.int64]
    query_lengths: NDArray[np.int64]
    samples: NDArray[np.bool_]

    @classmethod
    def of(cls, plan: executor_pb2.StepPlan, sequences: SequenceTable) -> PlanRows:
        """Raises QuireError for a plan that contradicts itself or what is known of its sequences."""
        slots = np.frombuffer(plan.slots, dtype="<u4")
        rows = cls(
            [sequences[slot] for slot in slots.tolist()],
            np.frombuffer(plan.computed_tokens, dtype="<u4").astype(np.int64),
            np.frombuffer(plan.query_lengths, dtype="<u4").astype(np.int64),
            np.frombuffer(plan.samples, dtype=np.uint8).astype(np.bool_),
        )
        if not len(slots) == len(rows.computed) == len(rows.query_lengths) == len(rows.samples):
            raise QuireError("the columns of the plan differ in length")
        known = np.fromiter((sequence.num_tokens for sequence in rows.sequences), np.int64, len(slots))
        end = rows.computed + rows.query_lengths
        # A token is sampled after the last known one, and nowhere else.
        wrong = (rows.query_lengths < 1) | (end > known) | (rows.samples & (end != known))
        if wrong.any():
            row = int(wrong.argmax())
            raise QuireError(
                f"the plan computes tokens {rows.computed[row]} to {end[row]} of slot {slots[row]} "
                f"(sampled: {bool(rows.samples[row])}), which has {known[row]} tokens"
            )
        return rows


def update_block_tables(plan: executor_pb2.StepPlan, rows: PlanRows) -> None:
    """Brings the sequences' block tables up to the plan. Raises QuireError for columns that do not fit."""
    num_rows = len(rows.sequences)
    if [update.cache_group for update in plan.block_tables] != [0] and num_rows:
        raise QuireError("the plan must update the block tables of cache group 0 and of no other")
    for update in plan.block_tables:
        kept = np.frombuffer(update.kept, dtype="<u4")
        appended = np.frombuffer(update.appended, dtype="<u4")
        block_ids = np.frombuffer(update.block_ids, dtype="<u4")
        ends = appended.cumsum(dtype=np.int64)
        if len(kept) != num_rows or len(appended) != num_rows or len(block_ids) != (ends[-1] if num_rows else 0):
            raise QuireError("the columns of the plan's block tables differ in length")
        for row, sequence in enumerate(rows.sequences):
            if appended[row] or kept[row] != sequence.num_blocks:
                sequence.update_blocks(int(kept[row]), block_ids[ends[row] - appended[row] : ends[row]])


def build_input_batch(rows: PlanRows, block_size: int, device: torch.device, *, rotary_lengths: bool) -> InputBatch:
    """The tensors of a step. Raises QuireError for a sequence whose block table is too short."""
    query_start = np.zeros(len(rows.sequences) + 1, np.int32)
    np.cumsum(rows.query_lengths, out=query_start[1:])
    context_lens = rows.computed + rows.query_lengths
    block_tables = _block_tables(rows.sequences, context_lens, block_size)

    row_of_token = np.repeat(np.arange(len(rows.sequences)), rows.query_lengths)
    positions = np.arange(query_start[-1]) + (rows.computed - query_start[:-1])[row_of_token]
    slot_mapping = block_tables[row_of_token, positions // block_size].astype(np.int64) * block_size
    slot_mapping += positions % block_size
    spans = zip(rows.sequences, rows.computed.tolist(), context_lens.tolist(), strict=True)
    token_ids = np.concatenate([sequence.tokens[start:end] for sequence, start, end in spans])

    lengths = None
    if rotary_lengths:
        prompts = np.fromiter((sequence.num_prompt_tokens for sequence in rows.sequences), np.int64)
        lengths = np.maximum(prompts[row_of_token], positions + 1)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    return InputBatch(
        tensor(token_ids),
        tensor(positions),
        None if lengths is None else tensor(lengths),
        AttentionMetadata(
            tensor(query_start), tensor(context_lens.astype(np.int32)), tensor(block_tables), tensor(slot_mapping)
        ),
        tensor(query_start[1:][rows.samples].astype(np.int64) - 1),
        [sequence for sequence, sampled in zip(rows.sequences, rows.samples, strict=True) if sampled],
    )


def _block_tables(sequences: list[Sequence], context_lens: NDArray[np.int64], block_size: int) -> NDArray[np.int32]:
    """int32 [num_rows, max_blocks], padded with 0."""
    needed = -(-context_lens // block_size)
    tables = np.zeros((len(sequences), int(needed.max())), np.int32)
    for row, (sequence, num_blocks) in enumerate(zip(sequences, needed.tolist(), strict=True)):
        if sequence.num_blocks < num_blocks:
            raise QuireError(
                f"slot {sequence.slot} has {sequence.num_blocks} blocks and needs {num_blocks} for this step"
            )
        tables[row, :num_blocks] = sequence.block_table[:num_blocks]
    return tables
