"""The arrays of a step against a loop over its tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from quire.columns import pack_u32
from quire.executor.input_batch import InputBatch, PlanRows, build_input_batch, update_block_tables
from quire.executor.sequence import SequenceTable
from quire.internal.v1 import executor_pb2

BLOCK_SIZE = 16

# (slot, computed tokens, new tokens, tokens in all)
Row = tuple[int, int, int, int]

STEPS: dict[str, list[Row]] = {
    "one decode": [(0, 9, 1, 10)],
    "decodes": [(4, 15, 1, 16), (1, 16, 1, 17), (9, 99, 1, 100), (2, 0, 1, 1)],
    "one prefill": [(3, 0, 40, 40)],
    "chunks and decodes": [(70, 32, 8, 41), (5, 20, 1, 21), (0, 3, 30, 33), (8, 0, 1, 2), (2, 63, 2, 65)],
}


def block_of(slot: int, index: int) -> int:
    """Every sequence has blocks of its own, in no order."""
    return slot * 100 + (index * 7) % 50


def token_of(slot: int, position: int) -> int:
    return slot * 1000 + position


def build(rows: Sequence[Row], *, rotary_lengths: bool = False) -> InputBatch:
    sequences = SequenceTable(vocab_size=1)
    tables = [[block_of(slot, i) for i in range(-(-(start + new) // BLOCK_SIZE))] for slot, start, new, _ in rows]
    plan = executor_pb2.StepPlan(
        new_sequences=[
            executor_pb2.NewSequence(slot=slot, prompt_token_ids=pack_u32(token_of(slot, i) for i in range(total)))
            for slot, _, _, total in rows
        ],
        slots=pack_u32(slot for slot, *_ in rows),
        computed_tokens=pack_u32(start for _, start, _, _ in rows),
        query_lengths=pack_u32(new for _, _, new, _ in rows),
        samples=bytes(start + new == total for _, start, new, total in rows),
        block_tables=[
            executor_pb2.BlockTableUpdate(
                kept=pack_u32(0 for _ in rows),
                appended=pack_u32(map(len, tables)),
                block_ids=pack_u32(block for table in tables for block in table),
            )
        ],
    )
    sequences.apply(plan)
    plan_rows = PlanRows.of(plan, sequences)
    update_block_tables(plan, plan_rows, sequences)
    return build_input_batch(plan_rows, sequences, BLOCK_SIZE, torch.device("cpu"), rotary_lengths=rotary_lengths)


@pytest.mark.parametrize("name", STEPS)
def test_every_token_has_its_place(name: str) -> None:
    rows = STEPS[name]
    batch = build(rows)
    tokens = [(slot, position) for slot, start, new, _ in rows for position in range(start, start + new)]
    arrays = batch.arrays
    assert arrays.token_ids.tolist() == [token_of(*token) for token in tokens]
    assert arrays.positions.tolist() == [position for _, position in tokens]
    assert arrays.slot_mapping.tolist() == [
        block_of(slot, position // BLOCK_SIZE) * BLOCK_SIZE + position % BLOCK_SIZE for slot, position in tokens
    ]
    starts = [0]
    for _, _, new, _ in rows:
        starts.append(starts[-1] + new)
    assert arrays.query_start.tolist() == starts
    assert arrays.context_lens.tolist() == [start + new for _, start, new, _ in rows]
    for (slot, start, new, _), table in zip(rows, arrays.block_tables.tolist(), strict=True):
        needed = -(-(start + new) // BLOCK_SIZE)
        assert table[:needed] == [block_of(slot, i) for i in range(needed)]
    sampled = [i for i, (_, start, new, total) in enumerate(rows) if start + new == total]
    assert arrays.logit_rows.tolist() == [starts[i + 1] - 1 for i in sampled]
    assert batch.sampled.tolist() == [rows[i][0] for i in sampled]
    assert arrays.rotary_lengths is None and batch.rotary_lengths is None


@pytest.mark.parametrize("name", STEPS)
def test_arrays_are_what_native_code_reads_and_tensors_share_them(name: str) -> None:
    batch = build(STEPS[name], rotary_lengths=True)
    arrays = batch.arrays
    assert arrays.rotary_lengths is not None and batch.rotary_lengths is not None
    pairs = [
        (arrays.token_ids, batch.token_ids),
        (arrays.positions, batch.positions),
        (arrays.rotary_lengths, batch.rotary_lengths),
        (arrays.query_start, batch.attention.query_start),
        (arrays.context_lens, batch.attention.context_lens),
        (arrays.block_tables, batch.attention.block_tables),
        (arrays.logit_rows, batch.logit_rows),
        (arrays.slot_mapping, batch.attention.slot_mapping),
    ]
    for array, tensor in pairs:
        assert array.flags.c_contiguous and tensor.data_ptr() == array.ctypes.data
        assert array.dtype == (np.int64 if array is arrays.slot_mapping else np.int32)
    assert batch.attention is batch.attention


def test_rotary_lengths_are_the_prompts_for_its_tokens() -> None:
    batch = build([(0, 4, 3, 20), (1, 30, 1, 31)], rotary_lengths=True)
    assert batch.arrays.rotary_lengths is not None
    assert batch.arrays.rotary_lengths.tolist() == [20, 20, 20, 31]


def test_rows_do_not_depend_on_each_other() -> None:
    rows = STEPS["chunks and decodes"]
    order = random.Random(0).sample(rows, len(rows))
    together = build(order).arrays
    for i, row in enumerate(order):
        alone = build([row]).arrays
        part = slice(together.query_start[i], together.query_start[i + 1])
        assert np.array_equal(together.token_ids[part], alone.token_ids)
        assert np.array_equal(together.slot_mapping[part], alone.slot_mapping)
