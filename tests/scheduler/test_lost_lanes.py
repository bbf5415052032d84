"""Executors that die with steps in flight: what clients get is what an undisturbed run gives."""

from __future__ import annotations

import pytest
from support.fake_executor import true_embedding
from support.scheduling import Bench

from quire.scheduler.lost_steps import BLAME, MAX_LOST_STEPS
from quire.scheduler.sequence import SequenceStatus
from quire.v1 import generate_pb2

PROMPT = list(range(1, 12))
LAST, MEAN = generate_pb2.POOLING_TYPE_LAST, generate_pb2.POOLING_TYPE_MEAN


def _lose_and_go_on(bench: Bench, lane: int = 0) -> None:
    assert bench.lose(lane).failed == []
    bench.scheduler.check_integrity(deep=True)
    bench.scheduler.regain_lane(lane)


def _stop_at(bench: Bench, num_steps: int, phase: str) -> None:
    """After some steps, with the next two sent, computed, or the first of them acknowledged."""
    for _ in range(num_steps):
        bench.step()
    for _ in range(2):
        if bench.plan() is not None and phase != "sent":
            bench.compute()
    if phase == "acknowledged" and bench.in_flight(0):
        bench.deliver()


@pytest.mark.parametrize("phase", ["sent", "computed", "acknowledged"])
@pytest.mark.parametrize("num_steps", range(6))
def test_every_kind_of_request_gets_what_it_would_have_got(num_steps, phase):
    bench = Bench(num_blocks=64, max_num_batched_tokens=9, max_num_seqs=20)
    bench.submit(PROMPT)
    forked = bench.submit([4, 5, 6], n=4)
    bench.submit([*PROMPT, 3], prompt_logprobs=2)
    bench.submit_beams([7, 8, 9], 3, n=2)
    pooled = [bench.submit(PROMPT, pooling=kind) for kind in (LAST, MEAN)]
    _stop_at(bench, num_steps, phase)
    bench.scheduler.pause(forked.request.key)
    _lose_and_go_on(bench)
    for _ in range(3):
        bench.step()
    bench.scheduler.resume(forked.request.key)
    bench.drain()
    bench.check_idle()
    for entry in bench.submitted.values():
        if entry in pooled:
            assert entry.embedding == true_embedding(entry.prompt, entry.request.pooling)
        else:
            assert [entry.outputs[i] for i in sorted(entry.finished)] == [entry.truth(i) for i in entry.finished]
            assert entry.finished, "it did not end"
    assert bench.scheduler.num_lost_lanes == 1
    assert bench.scheduler.num_preemptions == 0, "a loss is not a lack of blocks"


def test_acknowledged_blocks_are_not_computed_again():
    bench = Bench(num_blocks=32, block_size=4)
    entry = bench.submit(list(range(20)), max_tokens=12)
    for _ in range(3):
        bench.step()
    bench.plan()
    _lose_and_go_on(bench)
    plan = bench.plan()
    # The prompt's five blocks are whole.
    assert plan.computed_tokens == [20]
    bench.drain()
    assert entry.outputs[0] == entry.truth(0)


def test_a_block_that_a_lost_step_was_to_fill_is_not_trusted():
    bench = Bench(num_blocks=32, block_size=4)
    entry = bench.submit(list(range(20)), max_tokens=12)
    bench.plan()
    _lose_and_go_on(bench)
    assert bench.plan().computed_tokens == [0]
    bench.drain()
    assert entry.outputs[0] == entry.truth(0)


def test_the_other_lane_takes_everything_over():
    bench = Bench(num_lanes=2)
    entries = [bench.submit([i, *PROMPT]) for i in range(4)]
    for lane in (0, 1, 0, 1):
        bench.plan(lane)
    assert {sequence.lane for sequence in bench.scheduler.running} == {0, 1}
    bench.lose(1)
    bench.drain()
    assert [entry.outputs[0] for entry in entries] == [entry.truth(0) for entry in entries]
    assert not bench.scheduler.requests
    bench.check_idle()


def test_a_preempted_sequence_does_not_wait_for_a_dead_step():
    """It was preempted while a step that names it was in flight, and that step is never acknowledged."""
    bench = Bench(num_blocks=6, block_size=2)
    entries = [bench.submit([i, 1, 2], max_tokens=8) for i in range(2)]
    while bench.scheduler.num_preemptions == 0:
        if bench.in_flight(0) == 2:
            bench.compute()
            bench.deliver()
        bench.plan()
    assert any(entry.sequences[0].status is SequenceStatus.PREEMPTED for entry in entries)
    _lose_and_go_on(bench)
    bench.drain()
    assert [entry.outputs[0] for entry in entries] == [entry.truth(0) for entry in entries]
    bench.check_idle()


def test_a_request_that_kills_executors_ends_with_a_reason():
    bench = Bench()
    poison = bench.submit(PROMPT, n=2)
    for _ in range(MAX_LOST_STEPS - 1):
        bench.plan()
        _lose_and_go_on(bench)
    bench.plan()
    later = bench.submit([4, 5, 6])
    events = bench.lose()
    assert events.failed == [(poison.request, BLAME)]
    bench.scheduler.regain_lane(0)
    bench.drain()
    assert later.outputs[0] == later.truth(0)
    assert poison.outputs == {0: [], 1: []}
    bench.check_idle()


def test_requests_that_share_its_steps_survive():
    bench = Bench(max_num_seqs=8)
    innocent = [bench.submit([i, *PROMPT], max_tokens=30) for i in range(3)]
    for _ in range(4):
        bench.step()
    poison = bench.submit([9, 9, 9], max_tokens=30)
    innocent.append(bench.submit([7, *PROMPT], max_tokens=30))
    for _ in range(200):
        plan = bench.plan()
        if plan is None:
            break
        if poison.sequences[0] in plan.sequences:
            bench.lose()
            bench.scheduler.regain_lane(0)
        else:
            bench.compute()
            bench.deliver()
    assert poison.failure == BLAME
    assert [entry.outputs[0] for entry in innocent] == [entry.truth(0) for entry in innocent]
    bench.check_idle()


def test_a_long_prompt_gets_ahead_without_a_token():
    """Every step of it costs an executor once, and then is computed."""
    bench = Bench(num_blocks=64, block_size=4, max_num_batched_tokens=8, max_model_len=128)
    entry = bench.submit(list(range(100)), max_tokens=3)
    for _ in range(12):
        bench.plan()
        _lose_and_go_on(bench)
        bench.step()
    bench.drain()
    assert entry.outputs[0] == entry.truth(0)
    assert bench.scheduler.num_lost_lanes == 12 > MAX_LOST_STEPS


def test_a_request_that_gets_ahead_between_losses_goes_on():
    bench = Bench()
    entry = bench.submit(PROMPT, max_tokens=20)
    for _ in range(3 * MAX_LOST_STEPS):
        bench.step()
        bench.plan()
        _lose_and_go_on(bench)
    bench.drain()
    assert entry.outputs[0] == entry.truth(0)


def test_a_lane_that_is_handed_over_loses_no_block():
    """Its steps have ended, so all that they computed counts."""
    bench = Bench(num_blocks=32, block_size=4)
    entry = bench.submit(list(range(20)), max_tokens=12)
    bench.step()
    bench.scheduler.vacate_lane(0)
    assert bench.scheduler.num_lost_lanes == 0
    bench.scheduler.check_integrity(deep=True)
    plan = bench.scheduler.schedule(0)
    assert plan.computed_tokens == [20]
    assert plan.chunks[0].is_new
    assert entry.sequences[0].status is SequenceStatus.RUNNING
