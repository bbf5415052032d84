"""The table of sequences: growth, block tables, tokens."""

from __future__ import annotations

import numpy as np
import pytest

from quire.columns import pack_u32
from quire.errors import QuireError
from quire.executor.sequence import SequenceTable
from quire.internal.v1 import executor_pb2


def introduce(table: SequenceTable, slot: int, num_tokens: int, finished: tuple[int, ...] = ()) -> None:
    """A sequence whose tokens tell its slot and their positions."""
    tokens = [slot * 10_000 + position for position in range(num_tokens)]
    message = executor_pb2.NewSequence(
        slot=slot, prompt_token_ids=pack_u32(tokens[:-1]), output_token_ids=pack_u32(tokens[-1:])
    )
    table.apply(executor_pb2.StepPlan(finished_slots=pack_u32(finished), new_sequences=[message]))


def array(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_slots_and_lengths_grow_and_keep_what_they_held() -> None:
    table = SequenceTable(vocab_size=10)
    introduce(table, 3, 5)
    table.update_blocks(array(3), array(0), array(2), np.array([40, 41], np.uint32))
    introduce(table, 1000, 5000)
    table.update_blocks(array(1000), array(0), array(300), np.arange(300, dtype=np.uint32))
    assert len(table) == 2
    assert table.lengths(array(3, 1000)).tolist() == [5, 5000]
    assert table.num_prompt_tokens[[3, 1000]].tolist() == [4, 4999]
    assert table.token_ids[3, :5].tolist() == [30_000, 30_001, 30_002, 30_003, 30_004]
    assert table.token_ids[1000, 4999] == 1000 * 10_000 + 4999
    assert table.block_tables[3, :2].tolist() == [40, 41]
    assert table.block_tables[1000, :300].tolist() == list(range(300))
    rows = table.sampling_batch(array(1000, 3)).rows
    assert rows["num_tokens"].tolist() == [5000, 5] and rows["token_row"].tolist() == [1000, 3]


def test_tokens_are_appended_beyond_the_first_capacity() -> None:
    table = SequenceTable(vocab_size=10)
    introduce(table, 0, 1)
    introduce(table, 1, 2)
    for token in range(3000):
        table.append(array(1, 0), np.array([token, -token], np.int32))
    assert table.lengths(array(0, 1)).tolist() == [3001, 3002]
    assert table.token_ids[1, 2:3002].tolist() == list(range(3000))
    assert table.token_ids[0, 1:3001].tolist() == [-token for token in range(3000)]


def test_blocks_are_kept_and_appended_row_by_row() -> None:
    table = SequenceTable(vocab_size=10)
    for slot in range(4):
        introduce(table, slot, 1)
    table.update_blocks(array(2, 0, 3), array(0, 0, 0), array(3, 0, 2), np.array([5, 6, 7, 8, 9], np.uint32))
    assert table.num_blocks.tolist()[:4] == [0, 0, 3, 2]
    table.update_blocks(array(3, 0, 2), array(2, 0, 1), array(0, 1, 2), np.array([1, 2, 3], np.uint32))
    assert table.num_blocks.tolist()[:4] == [1, 0, 3, 2]
    assert table.block_tables[2, :3].tolist() == [5, 2, 3]
    assert table.block_tables[3, :2].tolist() == [8, 9]
    assert table.block_tables[0, 0] == 1
    table.update_blocks(array(2, 3), array(1, 2), array(0, 0), np.array([], np.uint32))
    assert table.num_blocks.tolist()[:4] == [1, 0, 1, 2]
    with pytest.raises(QuireError, match="keeps 2 blocks of slot 2, which has 1"):
        table.update_blocks(array(3, 2), array(2, 2), array(0, 0), np.array([], np.uint32))


def test_a_slot_without_a_sequence_is_named() -> None:
    table = SequenceTable(vocab_size=10)
    introduce(table, 0, 1)
    introduce(table, 1, 1, finished=(0, 99_999))
    assert len(table) == 1
    for slot in (0, 2, 99_999):
        with pytest.raises(QuireError, match=f"slot {slot}, which holds no sequence"):
            table.lengths(array(1, slot))
    with pytest.raises(QuireError, match="without tokens"):
        table.apply(executor_pb2.StepPlan(new_sequences=[executor_pb2.NewSequence(slot=1)]))
    table.clear()
    assert len(table) == 0


def test_chosen_tokens_replace_the_last_ones() -> None:
    table = SequenceTable(vocab_size=10)
    introduce(table, 3, 5)
    introduce(table, 70, 2)
    table.append(array(3), np.array([1], np.int32))
    # Slot 5 is new in the same plan; what was chosen for it is its last token.
    new = executor_pb2.NewSequence(slot=5, prompt_token_ids=pack_u32([7, 8]))
    table.apply(
        executor_pb2.StepPlan(
            new_sequences=[new], chosen_slots=pack_u32([70, 3, 5]), chosen_token_ids=pack_u32([8, 9, 6])
        )
    )
    assert table.lengths(array(3, 70, 5)).tolist() == [6, 2, 2]
    assert table.token_ids[3, 4:6].tolist() == [30_004, 9]
    assert table.token_ids[70, :2].tolist() == [700_000, 8]
    assert table.token_ids[5, :2].tolist() == [7, 6]


@pytest.mark.parametrize(("slots", "token_ids"), [([3], [1, 2]), ([4], [1]), ([5000], [1])])
def test_chosen_tokens_that_do_not_fit(slots: list[int], token_ids: list[int]) -> None:
    table = SequenceTable(vocab_size=10)
    introduce(table, 3, 5)
    with pytest.raises(QuireError, match=r"chosen tokens|holds no sequence"):
        table.apply(executor_pb2.StepPlan(chosen_slots=pack_u32(slots), chosen_token_ids=pack_u32(token_ids)))
