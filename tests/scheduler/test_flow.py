"""Requests that are paused because their readers lag."""

from __future__ import annotations

import pytest
from support.scheduling import Bench

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


def _blocks_of(entry) -> int:
    return sum(len(sequence.blocks) for sequence in entry.sequences)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("in_flight", [0, 2])
def test_a_paused_request_holds_nothing_and_goes_on_as_if_nothing_had_been(n, in_flight):
    bench = Bench()
    paused, other = bench.submit(PROMPT, max_tokens=20, n=n), bench.submit(PROMPT[::-1], max_tokens=30)
    for _ in range(3):
        bench.step()
    for _ in range(in_flight):
        bench.plan()
    bench.scheduler.pause(paused.request.key)
    bench.scheduler.pause(paused.request.key)
    assert _blocks_of(paused) == 0
    bench.drain()
    assert other.outputs[0] == other.truth(0)
    assert bench.scheduler.kv_cache.pool.num_held == 0
    assert all(len(output) < 20 for output in paused.outputs.values())
    bench.scheduler.resume(paused.request.key)
    bench.scheduler.resume(paused.request.key)
    bench.drain()
    bench.check_idle()
    assert all(paused.outputs[index] == paused.truth(index) for index in range(n))


def test_a_paused_request_makes_room_for_one_that_waits():
    bench = Bench(max_num_seqs=1)
    first, second = bench.submit(PROMPT), bench.submit(PROMPT[::-1])
    bench.step()
    bench.scheduler.pause(first.request.key)
    bench.drain()
    assert second.finished == {0}
    assert not first.finished


def test_one_that_waits_can_be_paused_before_it_runs():
    bench = Bench()
    entry = bench.submit(PROMPT, n=2)
    bench.scheduler.pause(entry.request.key)
    assert bench.plan() is None
    bench.scheduler.resume(entry.request.key)
    bench.drain()
    bench.check_idle()
    assert entry.finished == {0, 1}


@pytest.mark.parametrize("indices", [[], [0]])
@pytest.mark.parametrize("num_steps", [0, 2])
def test_a_paused_request_can_be_aborted(indices, num_steps):
    bench = Bench()
    entry = bench.submit(PROMPT, n=2)
    for _ in range(num_steps):
        bench.step()
    bench.scheduler.pause(entry.request.key)
    bench.scheduler.abort(entry.request.key, indices)
    bench.drain()
    if indices:
        assert entry.finished == set()
        bench.scheduler.resume(entry.request.key)
        bench.drain()
        assert entry.finished == {1}
    bench.check_idle()


def test_an_unknown_request_has_ended_already():
    bench = Bench()
    entry = bench.submit(PROMPT, max_tokens=1)
    bench.drain()
    bench.scheduler.pause(entry.request.key)
    bench.scheduler.resume(entry.request.key)
    bench.check_idle()
