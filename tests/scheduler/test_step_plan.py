"""A plan's columns: plain decodes by default, chunks where they differ."""

from __future__ import annotations

from support.scheduling import EPOCH, Bench

from quire.columns import unpack_u32

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


def test_a_prompt_is_introduced_with_its_blocks():
    bench = Bench(block_size=4)
    bench.submit(PROMPT)
    plan = bench.plan()
    message = plan.to_proto(EPOCH)
    (new,), (update,) = message.new_sequences, message.block_tables
    assert (message.epoch, message.step) == (EPOCH, 1)
    assert (new.slot, unpack_u32(new.prompt_token_ids), new.output_token_ids) == (plan.slots[0], PROMPT, b"")
    assert unpack_u32(message.slots) == plan.slots
    assert (unpack_u32(message.computed_tokens), unpack_u32(message.query_lengths)) == ([0], [10])
    assert message.samples == b"\1"
    assert (unpack_u32(update.kept), unpack_u32(update.appended)) == ([0], [3])
    assert unpack_u32(update.block_ids) == [block.id for block in plan.sequences[0].blocks]


def test_a_plain_decode_changes_no_block_table():
    bench = Bench(block_size=4)
    bench.submit(PROMPT)
    bench.step()
    plan = bench.plan()
    message = plan.to_proto(EPOCH)
    assert plan.chunks == []
    assert (unpack_u32(message.computed_tokens), unpack_u32(message.query_lengths)) == ([10], [1])
    assert message.samples == b"\1"
    (update,) = message.block_tables
    assert (unpack_u32(update.kept), unpack_u32(update.appended), update.block_ids) == ([3], [0], b"")
    assert (plan.num_prefill_tokens, plan.num_decode_tokens) == (0, 1)


def test_a_decode_that_begins_a_block_is_a_chunk_among_plain_ones():
    bench = Bench(block_size=4)
    bench.submit(PROMPT)
    bench.submit(PROMPT[:8])
    bench.step()
    plan = bench.plan()
    message = plan.to_proto(EPOCH)
    assert [(chunk.row, chunk.is_prefill) for chunk in plan.chunks] == [(1, False)]
    (update,) = message.block_tables
    assert (unpack_u32(update.kept), unpack_u32(update.appended)) == ([3, 2], [0, 1])
    assert unpack_u32(update.block_ids) == [plan.sequences[1].blocks[-1].id]
    assert (plan.num_prefill_tokens, plan.num_decode_tokens) == (0, 2)


def test_a_row_that_does_not_reach_its_last_token_is_not_sampled():
    bench = Bench(block_size=4, max_num_batched_tokens=6)
    bench.submit([1])
    bench.step()
    bench.submit(PROMPT)
    plan = bench.plan()
    assert (list(plan.query_lengths), list(plan.samples)) == ([1, 5], [1, 0])
    assert plan.sampled == plan.sequences[:1]
    assert (plan.num_prefill_tokens, plan.num_decode_tokens) == (5, 1)


def test_a_plan_does_not_change_with_the_steps_after_it():
    bench = Bench(block_size=1)
    bench.submit(PROMPT)
    first = bench.plan()
    before = first.to_proto(EPOCH).SerializeToString(deterministic=True)
    bench.plan()
    assert first.to_proto(EPOCH).SerializeToString(deterministic=True) == before
