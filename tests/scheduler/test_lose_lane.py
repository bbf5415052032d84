"""An executor dies with steps in flight: what it had acknowledged stays in the prefix cache, and nothing else."""

from __future__ import annotations

from quire.scheduler.kv_cache import KvCache
from quire.scheduler.sequence import Request, RequestKey, Sequence
from quire.v1 import generate_pb2

PROMPT = list(range(1, 18))


def _sequence(number: int, prompt: list[int] = PROMPT) -> Sequence:
    params = generate_pb2.SamplingParams(max_tokens=8)
    request = Request(RequestKey("gateway", number), str(number), 0, params, frozenset())
    return Sequence(request, 0, prompt, [], 64, number)


def _plan(cache: KvCache, lane: int, sequence: Sequence, num_new: int) -> None:
    """A step of a lane that computes `num_new` tokens of a sequence."""
    cache.lanes[lane].planned_step += 1
    cache.allocate(sequence, num_new)
    sequence.num_computed_tokens += num_new
    sequence.last_step = cache.lanes[lane].planned_step
    cache.hash_full_blocks(sequence)


def _begin(cache: KvCache, lane: int, number: int, num_new: int, prompt: list[int] = PROMPT) -> Sequence:
    sequence = _sequence(number, prompt)
    cache.adopt_prefix(sequence, lane)
    _plan(cache, lane, sequence, num_new)
    return sequence


def _num_found(cache: KvCache, lane: int, prompt: list[int] = PROMPT) -> int:
    probe = _sequence(99, prompt)
    num_found = cache.adopt_prefix(probe, lane)
    cache.abandon(probe)
    return num_found


def test_only_acknowledged_blocks_are_found_afterwards():
    cache = KvCache(16, 4)
    sequence = _begin(cache, 0, 1, 8)
    cache.acknowledge(0, 1)
    _plan(cache, 0, sequence, 4)
    _plan(cache, 0, sequence, 4)
    assert _num_found(cache, 0) == 4, "planned blocks are found by the same lane"
    cache.release(sequence)
    cache.lose_lane(0)
    assert _num_found(cache, 0) == 2
    assert cache.pool.num_held == 0
    assert cache.num_retiring == 0
    assert cache.lanes[0].acknowledged_step == cache.lanes[0].planned_step == 3
    cache.check_integrity([], deep=True)


def test_blocks_that_were_never_acknowledged_are_free_and_not_cached():
    cache = KvCache(16, 4)
    cache.release(_begin(cache, 0, 1, 17))
    cache.lose_lane(0)
    assert (cache.pool.num_free, cache.pool.num_cached) == (16, 0)
    assert len(cache.prefixes) == 0


def test_what_is_computed_again_is_found_again():
    cache = KvCache(16, 4)
    cache.release(_begin(cache, 0, 1, 17))
    cache.lose_lane(0)
    again = _begin(cache, 0, 2, 17)
    cache.acknowledge(0, 2)
    cache.release(again)
    assert _num_found(cache, 0) == 4
    cache.check_integrity([], deep=True)


def test_other_lanes_keep_what_they_hold_and_have_in_flight():
    cache = KvCache(32, 4, num_lanes=2)
    other_prompt = PROMPT[::-1]
    lost, other = _begin(cache, 0, 1, 17), _begin(cache, 1, 2, 17, other_prompt)
    cache.release(lost)
    cache.lose_lane(0)
    assert _num_found(cache, 1, other_prompt) == 4, "another lane's step in flight goes on"
    assert _num_found(cache, 0) == 0
    cache.check_integrity([other], deep=True)
    cache.release(other)
    assert cache.pool.num_held > 0, "another lane's blocks wait for its own acknowledgement"
    cache.acknowledge(1, 1)
    assert cache.pool.num_held == 0


def test_a_twin_of_a_lost_block_goes_on_but_its_continuation_is_not_found_through_the_lost_one():
    """Both lanes compute one prompt at a time; the index knows the block of the first, which dies."""
    cache = KvCache(32, 4, num_lanes=2)
    lost, twin = _begin(cache, 0, 1, 8), _begin(cache, 1, 2, 8)
    cache.release(lost)
    cache.lose_lane(0)
    _plan(cache, 1, twin, 8)
    cache.acknowledge(1, 2)
    assert _num_found(cache, 0) == _num_found(cache, 1) == 0
    cache.check_integrity([twin], deep=True)


def test_a_block_that_is_shared_by_a_lost_sequence_stays():
    cache = KvCache(32, 4, num_lanes=2)
    first = _begin(cache, 0, 1, 17)
    cache.acknowledge(0, 1)
    second = _begin(cache, 1, 2, 1)
    assert second.blocks[:4] == first.blocks[:4]
    cache.release(first)
    cache.lose_lane(0)
    assert _num_found(cache, 1) == 4
    cache.check_integrity([second], deep=True)


def test_losing_an_idle_lane_changes_nothing():
    cache = KvCache(16, 4)
    cache.release(_begin(cache, 0, 1, 17))
    cache.acknowledge(0, 1)
    cache.lose_lane(0)
    assert _num_found(cache, 0) == 4
    cache.check_integrity([], deep=True)
