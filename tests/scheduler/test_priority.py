"""Priorities: who runs first, and who loses blocks first."""

from __future__ import annotations

import pytest
from support.scheduling import Bench

from quire.errors import InvalidRequestError
from quire.scheduler.sequence import arrival_order

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


def test_order_is_by_priority_and_then_by_arrival():
    keys = [(-5, 9), (-5, 10), (0, 0), (0, 2**40), (1, 1), (2**31 - 1, 0)]
    assert sorted(keys, key=lambda key: arrival_order(*key)) == keys


def test_the_lowest_number_runs_first():
    bench = Bench(max_num_seqs=1, policy="priority")
    for priority in (0, 5, -1, 5, -1):
        bench.submit(PROMPT, max_tokens=1, priority=priority)
    order = []
    while (plan := bench.step()) is not None:
        order += [sequence.request.key.number for sequence in plan.sequences]
    assert order == [2, 4, 0, 1, 3]
    bench.check_idle()


def test_the_highest_number_is_preempted_first_and_then_the_latest():
    """Two blocks each, and a pool that is full once they need the third."""
    bench = Bench(num_blocks=8, block_size=4, policy="priority", prefix_caching=False, max_model_len=32)
    entries = [bench.submit([priority + 9, *PROMPT[:6]], max_tokens=9, priority=priority) for priority in (2, 0, 2, 1)]
    for _ in range(200):
        before = bench.scheduler.num_preemptions
        if bench.step() is None:
            break
        if bench.scheduler.num_preemptions > before:
            lost = [entry.request.key.number for entry in entries if not entry.sequences[0].blocks]
            assert 2 in lost, "the later one of the highest number"
            assert 0 in lost or len(lost) == 1
    assert bench.scheduler.num_preemptions > 0
    bench.check_idle()
    for entry in entries:
        assert entry.outputs[0] == entry.truth(0)


def test_a_priority_is_refused_where_all_are_served_in_order_of_arrival():
    bench = Bench()
    with pytest.raises(InvalidRequestError, match="--scheduling-policy priority") as refused:
        bench.submit(PROMPT, priority=1)
    assert refused.value.field == "priority"
    bench.submit(PROMPT, priority=0)
    bench.drain()
    bench.check_idle()
