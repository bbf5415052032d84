"""States for onlookers: shared, spaced, bounded; the map of the pool tells changes, and no look costs nothing."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator

import pytest
from support.scheduling import Bench

from quire.columns import unpack_u32
from quire.scheduler.metrics import MetricStore
from quire.scheduler.monitor import state as state_module
from quire.scheduler.monitor.block_map import BlockStates, state_of
from quire.scheduler.monitor.pace import Pace
from quire.scheduler.monitor.state import StateMaker
from quire.scheduler.monitor.watch import Watch
from quire.top.blocks import BlockStates as Onlooker
from quire.v1 import monitor_pb2

PATIENCE_S = 60


def maker_of(bench: Bench) -> StateMaker:
    return StateMaker(bench.scheduler, MetricStore(64), "model")


def watch_of(bench: Bench, pace: Pace | None = None) -> Watch:
    return Watch(maker_of(bench), pace or Pace(0.9), BlockStates(bench.scheduler.kv_cache.pool))


async def next_of(states: AsyncGenerator[monitor_pb2.ServerState, None]) -> monitor_pb2.ServerState:
    async with asyncio.timeout(PATIENCE_S):
        return await anext(states)


def truth(bench: Bench) -> bytes:
    return bytes(map(state_of, bench.scheduler.kv_cache.pool.blocks))


def test_states_of_blocks() -> None:
    bench = Bench(num_blocks=8, block_size=4, max_model_len=32)
    bench.submit([1, 2, 3, 4, 5], n=4, max_tokens=3)
    bench.step()
    pool = bench.scheduler.kv_cache.pool
    shared = bench.submitted[next(iter(bench.submitted))].sequences[0].blocks[0]
    assert pool.blocks[shared.id].ref_count == 4
    assert state_of(shared) == 5
    bench.drain()
    assert state_of(shared) == 1, "its prompt is cached"
    assert 0 in truth(bench)
    shared.ref_count = 300
    assert state_of(shared) == 255


async def test_changes_lead_to_the_truth() -> None:
    """Whatever happens between two looks, and at whatever speed onlookers look."""
    bench = Bench(num_blocks=48, block_size=2, max_num_seqs=8, num_lanes=2)
    watch = watch_of(bench)
    chance = random.Random(7)
    maker = maker_of(bench)
    lookers = [(Onlooker(), watch.states(1e-6), every) for every in (1, 3, 7)]
    kinds = set()
    for turn in range(300):
        if len(bench.scheduler.requests) < 6:
            prompt = [chance.randrange(3) for _ in range(chance.randrange(1, 20))]
            if chance.random() < 0.3:
                bench.submit_beams(prompt, 3, max_tokens=12)
            else:
                bench.submit(prompt, n=chance.choice([1, 1, 3]), max_tokens=12)
        for lane in (0, 1):
            bench.step(lane)
        if turn % 2 == 0:
            tables = [unpack_u32(sequence.block_ids) for sequence in maker.state(with_tables=True).sequences]
            running = bench.scheduler.running
            assert tables[: len(running)] == [[block.id for block in sequence.blocks] for sequence in running]
        for looker, states, every in lookers:
            if turn % every == 0:
                state = await next_of(states)
                looker.update(state.blocks)
                kinds.add(state.blocks.is_complete)
                assert bytes(looker.states) == truth(bench)
    assert kinds == {True, False}
    for _, states, _ in lookers:
        await states.aclose()
    assert bench.scheduler.kv_cache.pool.changed is None, "the pool notes nothing any more"


async def test_one_that_comes_later_gets_all() -> None:
    bench = Bench(num_blocks=64, block_size=4)
    watch = watch_of(bench)
    first = watch.states(1e-6)
    assert (await next_of(first)).blocks.is_complete
    assert not (await next_of(first)).blocks.is_complete
    second = watch.states(1e-6)
    assert (await next_of(second)).blocks.is_complete
    await first.aclose()
    await second.aclose()


async def test_those_who_are_due_at_a_time_share_a_state(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    made = []
    monkeypatch.setattr(StateMaker, "state", lambda self, with_tables: made.append(1) or monitor_pb2.ServerState())
    watch = watch_of(bench)
    many = [watch.states(3600) for _ in range(20)]
    await asyncio.gather(*(next_of(states) for states in many))
    assert len(made) == 1
    for states in many:
        await states.aclose()


async def test_what_takes_long_is_done_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()

    def slow(self: StateMaker, with_tables: bool) -> monitor_pb2.ServerState:
        time.sleep(0.01)
        return monitor_pb2.ServerState()

    monkeypatch.setattr(StateMaker, "state", slow)
    watch = watch_of(bench, Pace(0.1))
    states = watch.states(1e-6)
    started = time.perf_counter()
    for _ in range(4):
        await next_of(states)
    # Three pauses of at least nine times 10 ms; a machine that is busy makes them longer.
    assert time.perf_counter() - started >= 0.27
    await states.aclose()


async def test_a_large_pool_is_read_in_parts() -> None:
    bench = Bench(num_blocks=10_000, block_size=4)
    pool = bench.scheduler.kv_cache.pool
    blocks = BlockStates(pool)
    blocks.open()
    blocks.read_part()
    assert not blocks.is_complete
    # What changes meanwhile is noted.
    pool.take()
    while not blocks.is_complete:
        blocks.read_part()
    blocks.update()
    assert blocks.since(None).states == truth(bench)
    blocks.close()


def test_loads_and_states_say_what_the_scheduler_has() -> None:
    bench = Bench(block_size=4, max_num_seqs=2)
    for i in range(4):
        bench.submit([i, *range(8)], max_tokens=4, tenant="a tenant")
    bench.step()
    state = maker_of(bench).state(with_tables=True)
    loads = state.loads
    assert (loads.num_requests_running, loads.num_requests_waiting, loads.num_waiting_tokens) == (2, 2, 18)
    assert loads.free_blocks + loads.cached_blocks + loads.held_blocks == loads.num_blocks == 64
    assert loads.kv_cache_usage == loads.held_blocks / 64 > 0
    assert [sequence.status for sequence in state.sequences] == ["running"] * 2 + ["waiting"] * 2
    assert {sequence.tenant for sequence in state.sequences} == {"a tenant"}
    running = bench.scheduler.running
    assert [unpack_u32(s.block_ids) for s in state.sequences[:2]] == [[b.id for b in s.blocks] for s in running]
    assert (state.num_steps, state.num_prompt_tokens, state.num_generation_tokens) == (1, 18, 2)
    bench.drain()
    state = maker_of(bench).state(with_tables=True)
    assert not state.sequences
    assert state.num_generation_tokens == 16


def test_messages_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "MAX_SEQUENCES", 3)
    monkeypatch.setattr(state_module, "MAX_BLOCK_IDS", 4)
    bench = Bench(block_size=4, max_num_seqs=8)
    for i in range(6):
        bench.submit([i, *range(8)], max_tokens=4)
    bench.step()
    state = maker_of(bench).state(with_tables=True)
    assert [len(sequence.block_ids) // 4 for sequence in state.sequences] == [3, 0, 0]
    assert all(not sequence.block_ids for sequence in maker_of(bench).state(with_tables=False).sequences)
