"""Single rules of the scheduler, each in the smallest history that shows it."""

from __future__ import annotations

import pytest
from support.scheduling import EPOCH, Bench

from quire.columns import pack_u32
from quire.errors import ContextLengthError, DuplicateRequestError, InvalidRequestError, QuireError
from quire.internal.v1 import executor_pb2
from quire.scheduler.scheduler import Scheduler
from quire.scheduler.sequence import TRANSITIONS, Request, RequestKey, Sequence, SequenceStatus
from quire.v1 import generate_pb2

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


def _rows(plan):
    rows = zip(plan.sequences, plan.query_lengths, strict=True)
    return [(sequence.request.request_id, sequence.index, num_new_tokens) for sequence, num_new_tokens in rows]


def _finish_and_check(bench: Bench) -> None:
    bench.drain()
    bench.check_idle()
    for entry in bench.submitted.values():
        for index in entry.finished:
            assert entry.outputs[index] == entry.truth(index)


def test_a_request_runs_to_its_end():
    bench = Bench()
    entry = bench.submit(PROMPT, max_tokens=5)
    _finish_and_check(bench)
    assert entry.outputs[0] == entry.truth(0)
    assert len(entry.outputs[0]) == 5
    assert entry.sequences[0].status is SequenceStatus.LENGTH_CAPPED


def test_a_stop_token_ends_a_sequence_and_is_its_last():
    bench = Bench()
    truth = bench.submit(PROMPT, max_tokens=8).truth(0)
    stopped = bench.submit(PROMPT, max_tokens=8, stop=(truth[2],))
    _finish_and_check(bench)
    assert stopped.outputs[0] == truth[: truth.index(truth[2]) + 1]
    assert stopped.sequences[0].status is SequenceStatus.STOPPED


def test_long_prompts_are_cut_to_the_budget_and_share_steps_with_decodes():
    bench = Bench(max_num_batched_tokens=4, block_size=4)
    bench.submit([1], max_tokens=12)
    bench.step()
    bench.submit(PROMPT, max_tokens=2)
    plans = [bench.step() for _ in range(3)]
    assert [_rows(plan) for plan in plans] == [
        [("request-0", 0, 1), ("request-1", 0, 3)],
        [("request-0", 0, 1), ("request-1", 0, 3)],
        [("request-0", 0, 1), ("request-1", 0, 3)],
    ]
    assert (plans[0].num_prefill_tokens, plans[0].num_decode_tokens) == (3, 1)
    assert list(plans[0].samples) == [True, False]
    _finish_and_check(bench)


def test_plans_run_ahead_of_results():
    """The token that step 1 samples is computed by step 2, which is planned before it is known."""
    bench = Bench()
    bench.submit(PROMPT, max_tokens=4)
    first, second = bench.plan(), bench.plan()
    assert _rows(first) == [("request-0", 0, len(PROMPT))]
    assert _rows(second) == [("request-0", 0, 1)]
    assert second.computed_tokens == [len(PROMPT)]
    _finish_and_check(bench)


def test_nothing_is_planned_past_the_last_token():
    bench = Bench()
    bench.submit(PROMPT, max_tokens=2)
    assert bench.plan() and bench.plan()
    assert bench.plan() is None
    _finish_and_check(bench)


def test_equal_prompts_at_once_compute_one_prefix():
    bench = Bench(block_size=4)
    for _ in range(5):
        bench.submit(PROMPT, max_tokens=1)
    plan = bench.plan()
    assert [count for _, _, count in _rows(plan)] == [10, 2, 2, 2, 2]
    _finish_and_check(bench)
    cached = [entry.request.num_cached_tokens for entry in bench.submitted.values()]
    assert cached == [0, 8, 8, 8, 8]


def test_a_hit_never_covers_the_last_token():
    bench = Bench(block_size=4)
    bench.submit(PROMPT[:8], max_tokens=1)
    bench.drain()
    bench.submit(PROMPT[:8], max_tokens=1)
    assert _rows(bench.step()) == [("request-1", 0, 4)]


def test_prefixes_of_different_keys_are_not_shared():
    bench = Bench(block_size=4)
    bench.submit(PROMPT, max_tokens=1, extra_key=b"a")
    bench.submit(PROMPT, max_tokens=1, extra_key=b"b")
    assert [count for _, _, count in _rows(bench.plan())] == [10, 10]
    _finish_and_check(bench)


def test_another_executors_blocks_are_hit_only_once_acknowledged():
    bench = Bench(block_size=4, num_lanes=2)
    bench.submit(PROMPT, max_tokens=20)
    bench.plan(0)
    bench.submit(PROMPT, max_tokens=1)
    assert _rows(bench.plan(1)) == [("request-1", 0, 10)], "the other lane may not have written them yet"
    bench.compute(1)
    bench.deliver(1)
    bench.compute(0)
    bench.deliver(0)
    bench.submit(PROMPT, max_tokens=1)
    assert _rows(bench.plan(1)) == [("request-2", 0, 2)]
    _finish_and_check(bench)


def test_requests_are_spread_over_executors():
    bench = Bench(num_lanes=2)
    for _ in range(6):
        bench.submit(PROMPT, max_tokens=2)
    assert [len(bench.plan(lane).sequences) for lane in (0, 1)] == [3, 3]
    _finish_and_check(bench)


@pytest.mark.parametrize(("length", "copies"), [(7, 3), (8, 3), (9, 0)])
def test_continuations_share_the_prompt_and_copy_on_write(length, copies):
    """Full blocks stay shared; a sequence copies the block it writes first, unless it writes from its start."""
    bench = Bench(block_size=4, prefix_caching=False)
    entry = bench.submit(PROMPT[:length], max_tokens=3, n=4)
    bench.step()
    plan = bench.step()
    assert sorted(sequence.index for sequence in plan.sequences) == [0, 1, 2, 3]
    copied = [copy for chunk in plan.chunks for copy in chunk.allocation.copies]
    assert len(copied) == copies
    tables = [[block.id for block in sequence.blocks] for sequence in entry.sequences]
    full = (length - 1) // 4
    assert len({tuple(table[:full]) for table in tables}) == 1
    assert len({table[full] for table in tables}) == 4
    _finish_and_check(bench)
    assert entry.finished == {0, 1, 2, 3}


def test_continuations_beyond_the_slots_wait():
    bench = Bench(max_num_seqs=2)
    entry = bench.submit(PROMPT, max_tokens=3, n=5)
    _finish_and_check(bench)
    assert entry.finished == set(range(5))
    assert max(len(plan.sequences) for plan in bench.plans) == 2


def test_aborting_the_first_continuation_lets_the_others_go_on():
    bench = Bench(max_num_batched_tokens=4)
    entry = bench.submit(PROMPT, max_tokens=3, n=3)
    bench.step()
    bench.scheduler.abort(entry.request.key, [0])
    _finish_and_check(bench)
    assert entry.finished == {1, 2}


def test_a_full_pool_preempts_the_latest_arrival_and_its_output_is_unchanged():
    bench = Bench(num_blocks=8, block_size=4, max_model_len=32)
    entries = [bench.submit(PROMPT[i : i + 6], max_tokens=16) for i in range(3)]
    _finish_and_check(bench)
    assert bench.scheduler.num_preemptions > 0
    assert all(entry.finished == {0} for entry in entries)
    # The first to arrive never loses its blocks.
    rows = (row for plan in bench.plans for row in zip(plan.sequences, plan.computed_tokens, strict=True))
    assert list(rows).count((entries[0].sequences[0], 0)) == 1


def test_a_queue_head_that_does_not_fit_is_hashed_once():
    bench = Bench(num_blocks=6, block_size=4, max_model_len=24)
    bench.submit(PROMPT, max_tokens=14)
    bench.step()
    waiting = bench.submit(PROMPT[:9] + [8] * 13, max_tokens=2)
    bench.step()
    hashes = list(waiting.sequences[0].block_hashes)
    assert len(hashes) == 3, "two blocks were found, the third was not"
    bench.step()
    assert waiting.sequences[0].status is SequenceStatus.WAITING
    again = waiting.sequences[0].block_hashes
    assert all(new is old for new, old in zip(again, hashes, strict=True))
    _finish_and_check(bench)


def test_a_preempted_lane_mate_is_not_in_the_plan_that_took_its_blocks():
    bench = Bench(num_blocks=4, block_size=4, max_model_len=16, prefix_caching=False)
    first, second = bench.submit(PROMPT[:7], max_tokens=8), bench.submit(PROMPT[:6], max_tokens=8)
    while bench.scheduler.num_preemptions == 0:
        plan = bench.step()
    assert plan.sequences == first.sequences
    assert second.sequences[0].status is SequenceStatus.PREEMPTED
    _finish_and_check(bench)


def test_a_result_with_too_few_tokens_is_refused():
    bench = Bench()
    bench.submit(PROMPT)
    plan = bench.plan()
    with pytest.raises(QuireError, match="0 tokens where 1 were due"):
        bench.scheduler.update_from_output(plan, executor_pb2.StepResult(epoch=EPOCH, step=plan.step))


def test_logprobs_stay_with_their_tokens_when_a_sequence_ends():
    """The first of three was aborted while the step ran: its token and its logprobs are dropped."""
    bench = Bench()
    entries = [bench.submit(PROMPT[i:]) for i in range(3)]
    plan = bench.plan()
    bench.scheduler.abort(entries[0].request.key)
    result = executor_pb2.StepResult(epoch=EPOCH, step=plan.step, token_ids=pack_u32([10, 11, 12]))
    for row in (0, 2):
        result.logprobs.add(row=row).logprobs.logprob = -row
    events = bench.scheduler.update_from_output(plan, result)
    assert events.sequences == [entry.sequences[0] for entry in entries[1:]]
    assert events.token_ids == [11, 12]
    assert {row: logprobs.logprob for row, logprobs in events.logprobs.items()} == {1: -2}


def test_a_request_starts_once_with_its_first_token():
    bench = Bench(max_num_batched_tokens=6)
    entry = bench.submit(PROMPT, n=3)
    started = []
    while bench.plan() is not None:
        bench.compute()
        started.append(bench.scheduler.update_from_output(*bench.lanes[0].computed.popleft()).started)
    assert [len(requests) for requests in started[:3]] == [0, 1, 0], "the prompt takes two steps"
    assert [request for requests in started for request in requests] == [entry.request]


def test_blocks_of_an_aborted_request_wait_for_the_steps_in_flight():
    bench = Bench()
    entry = bench.submit(PROMPT, max_tokens=8)
    bench.plan()
    bench.scheduler.abort(entry.request.key)
    assert bench.scheduler.kv_cache.pool.num_held > 0
    bench.compute()
    bench.deliver()
    assert bench.scheduler.kv_cache.pool.num_held == 0
    bench.check_idle()


def test_a_second_turn_reuses_the_first_with_its_output():
    bench = Bench(block_size=4)
    first = bench.submit(PROMPT, max_tokens=7)
    bench.drain()
    second = bench.submit(PROMPT + first.outputs[0] + [1, 2, 3], max_tokens=1)
    bench.drain()
    assert second.request.num_cached_tokens == 16


def test_a_resubmitted_sequence_continues_where_it_was():
    bench = Bench()
    truth = bench.submit(PROMPT, max_tokens=6).truth(0)
    bench.drain()
    params = generate_pb2.SamplingParams(max_tokens=6)
    request = Request(RequestKey("gateway", 99), "again", 1, params, frozenset())
    bench.scheduler.add_request(request, PROMPT, {0: truth[:2]})
    plan = bench.plan()
    assert plan.to_proto(1).new_sequences[0].output_token_ids != b""
    bench.compute()
    events = bench.scheduler.update_from_output(*bench.lanes[0].computed.popleft())
    assert (events.positions, events.token_ids) == ([2], [truth[2]])


@pytest.mark.parametrize(
    ("prompt", "outputs", "max_tokens", "error"),
    [
        ([], {0: []}, 4, InvalidRequestError),
        (PROMPT, {}, 4, InvalidRequestError),
        (PROMPT, {0: []}, 0, InvalidRequestError),
        (PROMPT, {0: [1, 2, 3, 4]}, 4, InvalidRequestError),
        ([1] * 64, {0: []}, 4, ContextLengthError),
    ],
)
def test_what_can_never_run_is_refused(prompt, outputs, max_tokens, error):
    bench = Bench(max_model_len=64)
    params = generate_pb2.SamplingParams(max_tokens=max_tokens)
    request = Request(RequestKey("gateway", 0), "bad", 0, params, frozenset())
    with pytest.raises(error):
        bench.scheduler.add_request(request, prompt, outputs)
    bench.check_idle()


def test_a_key_is_used_once():
    bench = Bench()
    entry = bench.submit(PROMPT)
    with pytest.raises(DuplicateRequestError):
        bench.scheduler.add_request(entry.request, PROMPT, {0: []})


def test_only_the_moves_in_the_table_are_possible():
    request = Request(RequestKey("g", 0), "r", 0, generate_pb2.SamplingParams(max_tokens=1), frozenset())
    for start in SequenceStatus:
        for end in SequenceStatus:
            sequence = Sequence(request, 0, [1], [], 8, 0)
            sequence.status = start
            if end in TRANSITIONS[start]:
                sequence.move_to(end)
                assert sequence.status is end
            else:
                with pytest.raises(ValueError, match="cannot become"):
                    sequence.move_to(end)


def test_integrity_check_notices_a_leak():
    bench = Bench()
    bench.scheduler.kv_cache.pool.take()
    with pytest.raises(AssertionError, match="held"):
        bench.scheduler.check_integrity()


def test_schedule_fits_on_a_screen():
    import inspect

    assert len(inspect.getsource(Scheduler.schedule).splitlines()) <= 40
