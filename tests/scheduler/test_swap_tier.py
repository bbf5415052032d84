"""What moves to the swap tier and back, and when."""

from __future__ import annotations

import pytest
from support.scheduling import Bench

BLOCK = 4


def _prompt(topic: int, num_blocks: int = 4) -> list[int]:
    """Of so many blocks and one token, so that all of the blocks can be hits."""
    return [topic + i % 3 for i in range(num_blocks * BLOCK)] + [topic]


def _bench(**sizes: int) -> Bench:
    """Three of these prompts do not fit the pool; what is evicted fits the tier."""
    return Bench(**{"num_blocks": 10, "block_size": BLOCK, "num_swap_blocks": 16, "max_moves": 100, **sizes})


def _answer(bench: Bench, topic: int, num_blocks: int = 4) -> None:
    submitted = bench.submit(_prompt(topic, num_blocks), max_tokens=2, ignore_eos=True)
    bench.drain()
    assert submitted.outputs[0] == submitted.truth(0)


def test_prompts_that_were_evicted_are_brought_back() -> None:
    bench = _bench()
    swap = bench.scheduler.kv_cache.swap
    for topic in (10, 20, 30, 40):
        _answer(bench, topic)
    assert (swap.num_swapped_in, swap.num_hit_tokens) == (0, 0)
    assert swap.num_swapped_out >= 4
    computed = bench.scheduler.counts.num_prompt_tokens
    _answer(bench, 10)
    assert swap.num_swapped_in == 4
    assert swap.num_hit_tokens == 4 * BLOCK
    assert bench.scheduler.kv_cache.num_hit_tokens == 0
    assert bench.scheduler.counts.num_prompt_tokens == computed + 1
    bench.check_idle()


def test_what_the_host_has_already_is_not_copied_again() -> None:
    bench = _bench(num_swap_blocks=64)
    swap = bench.scheduler.kv_cache.swap
    for topic in (10, 20, 30, 10, 20, 30):
        _answer(bench, topic)
    outs = swap.num_swapped_out
    for topic in (10, 20, 30, 10, 20, 30):
        _answer(bench, topic)
    assert swap.num_swapped_in >= 24
    assert swap.num_swapped_out == outs


def test_a_preempted_sequence_comes_back_out_of_the_host() -> None:
    bench = _bench(num_blocks=12, num_swap_blocks=64, max_num_seqs=4)
    entries = [bench.submit(_prompt(topic), max_tokens=12, ignore_eos=True) for topic in (10, 20, 30)]
    bench.drain()
    assert bench.scheduler.num_preemptions
    assert bench.scheduler.kv_cache.swap.num_swapped_in
    for entry in entries:
        assert entry.outputs[0] == entry.truth(0)
    bench.check_idle()


def test_a_step_takes_out_only_so_much() -> None:
    bench = _bench(max_moves=1)
    for topic in (10, 20, 30, 40):
        _answer(bench, topic)
    assert bench.scheduler.kv_cache.swap.num_swapped_out
    for plan in bench.plans:
        assert plan.moves is None or len(plan.moves.out_sources) == 1


@pytest.mark.parametrize("is_alone", [True, False])
def test_a_step_that_others_wait_for_brings_in_only_so_much(is_alone: bool) -> None:
    # A step computes a block, so that it also evicts no more.
    bench = _bench(num_blocks=16, num_swap_blocks=64, max_moves=2, max_num_batched_tokens=BLOCK)
    for topic in (10, 20, 30, 40, 50):
        _answer(bench, topic)
    bench.plans.clear()
    if not is_alone:
        bench.submit(_prompt(60, 1), max_tokens=12, ignore_eos=True)
        bench.step()
        bench.step()
    entry = bench.submit(_prompt(10), max_tokens=2, ignore_eos=True)
    bench.drain()
    assert entry.outputs[0] == entry.truth(0)
    swap, ins = bench.scheduler.kv_cache.swap, [len(plan.moves.in_sources) for plan in bench.plans if plan.moves]
    assert swap.num_hit_tokens == 4 * BLOCK
    assert [count for count in ins if count] == ([4] if is_alone else [2, 2])
    bench.check_idle()


def test_copies_that_a_dead_executor_was_to_make_are_forgotten() -> None:
    bench = _bench()
    for topic in (10, 20):
        _answer(bench, topic)
    entry = bench.submit(_prompt(30), max_tokens=2, ignore_eos=True)
    plan = bench.plan()
    assert plan is not None and plan.moves is not None and plan.moves.out_sources
    bench.lose()
    swap = bench.scheduler.kv_cache.swap
    assert swap.pool.num_cached == swap.pool.num_held == 0
    bench.scheduler.regain_lane(0)
    bench.drain()
    assert entry.outputs[0] == entry.truth(0)
    _answer(bench, 10)
    bench.check_idle()


def test_another_executor_reads_a_copy_once_it_is_there() -> None:
    bench = _bench(num_lanes=2)
    for topic in (10, 20):
        _answer(bench, topic)
    bench.submit(_prompt(30), max_tokens=2, ignore_eos=True)
    plan = bench.plan(0)
    assert plan is not None and plan.moves is not None
    swap = bench.scheduler.kv_cache.swap
    made = [block.prefix for block in swap.pool.blocks if block.prefix is not None]
    names = [(prefix.hash, prefix.parent, prefix.tokens, prefix.extra_key) for prefix in made]
    assert names and all(swap.find(*name, lane=0) and not swap.find(*name, lane=1) for name in names)
    bench.compute(0)
    bench.deliver(0)
    assert all(swap.find(*name, lane=1) for name in names)
    bench.drain()


def test_the_host_s_content_outlives_the_pool_s() -> None:
    """Of a pool that ends with its executor."""
    bench = _bench(num_swap_blocks=64)
    for topic in (10, 20, 30, 40):
        _answer(bench, topic)
    bench.lose()
    bench.memory.slots.clear()
    bench.scheduler.kv_cache.forget_all()
    bench.scheduler.regain_lane(0)
    swap = bench.scheduler.kv_cache.swap
    assert swap.num_hit_tokens == 0
    _answer(bench, 10)
    assert swap.num_hit_tokens == 4 * BLOCK
    bench.check_idle()


def test_what_continues_a_content_that_is_computed_anew_is_found() -> None:
    bench = _bench(num_blocks=6, num_swap_blocks=64)
    cache = bench.scheduler.kv_cache
    _answer(bench, 10, 4)
    _answer(bench, 20, 4)  # evicts all but the first block of the other
    assert cache.swap.num_swapped_out
    bench.lose()
    bench.memory.slots.clear()
    cache.forget_all()
    bench.scheduler.regain_lane(0)
    _answer(bench, 10, 1)  # its beginning
    assert cache.swap.num_hit_tokens == 0
    _answer(bench, 10, 4)
    assert cache.num_hit_tokens == BLOCK
    assert cache.swap.num_hit_tokens == 3 * BLOCK


def test_without_room_in_the_host_contents_are_lost() -> None:
    bench = _bench(num_swap_blocks=1)
    for topic in (10, 20, 30, 10):
        _answer(bench, topic)
    assert bench.scheduler.kv_cache.swap.num_hit_tokens <= BLOCK
    bench.check_idle()
