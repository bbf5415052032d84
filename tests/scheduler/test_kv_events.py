"""When blocks are announced, and what a reader gets who comes late, lags, or comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from support.scheduling import Bench

from quire.kv_journal import KvJournal, chain_hash, record_bytes
from quire.scheduler.monitor.kv_events import KvEventLog
from quire.scheduler.monitor.kv_stream import KvEventStreams
from quire.v1 import monitor_pb2

PATIENCE_S = 60


def listen(bench: Bench, max_events: int = 1000) -> KvEventLog:
    log = bench.scheduler.kv_cache.prefixes.listener = KvEventLog(bench.scheduler.kv_cache, max_events)
    return log


def news(log: KvEventLog, after: int = 1) -> list[monitor_pb2.KvEvent]:
    return log.after(after, 10_000)


def kinds(events: list[monitor_pb2.KvEvent]) -> list[str | None]:
    return [event.WhichOneof("event") for event in events]


def test_nothing_is_collected_unless_somebody_listens() -> None:
    bench = Bench()
    assert bench.scheduler.kv_cache.prefixes.listener is None
    assert bench.scheduler.kv_cache.pool.changed is None


def test_a_block_is_announced_when_it_is_computed() -> None:
    bench = Bench(block_size=4)
    log = listen(bench)
    bench.submit(list(range(10)), max_tokens=1)
    bench.plan()
    assert news(log) == [], "it is planned, and can be lost"
    bench.compute()
    bench.deliver()
    first, second = news(log)
    assert (first.id, second.id) == (2, 3)
    tokens = [bytes(b for token in part for b in token.to_bytes(4, "little")) for part in (range(4), range(4, 8))]
    assert first.stored.block_hash == chain_hash(b"", tokens[0], b"")
    assert first.stored.parent_hash == b""
    assert first.stored.num_tokens == 4
    assert not first.stored.is_salted
    assert second.stored.block_hash == chain_hash(first.stored.block_hash, tokens[1], b"")
    assert second.stored.parent_hash == first.stored.block_hash


def test_what_a_dead_executor_had_in_flight_is_never_announced() -> None:
    bench = Bench(block_size=4)
    log = listen(bench)
    bench.submit(list(range(10)), max_tokens=1)
    bench.plan()
    bench.lose()
    assert news(log) == []
    bench.scheduler.regain_lane(0)
    bench.drain()
    assert kinds(news(log)) == ["stored", "stored"]


def test_a_parent_that_another_executor_computes_comes_before_its_child() -> None:
    bench = Bench(block_size=4, num_lanes=2)
    log = listen(bench)
    shared = list(range(8))
    # Each executor computes the shared prompt, since the other's is not there yet. The first's is the one that counts.
    bench.submit([*shared, 1, 2, 3, 4, 5], max_tokens=1)
    bench.submit([*shared, 6, 7, 8, 9, 10], max_tokens=1)
    for lane in (0, 1):
        assert bench.plan(lane) is not None
    bench.compute(1)
    bench.deliver(1)
    assert news(log) == [], "its parent is not there"
    bench.compute(0)
    bench.deliver(0)
    events = news(log)
    assert kinds(events) == ["stored"] * 4
    known = {b""}
    for event in events:
        assert event.stored.parent_hash in known
        known.add(event.stored.block_hash)


def test_salted_blocks_are_marked() -> None:
    bench = Bench(block_size=4)
    log = listen(bench)
    bench.submit([1, 2, 3, 4, 5], extra_key=b"tenant", max_tokens=1)
    bench.drain()
    assert [event.stored.is_salted for event in news(log)] == [True]


def test_a_pool_that_is_gone_is_one_event() -> None:
    bench = Bench(block_size=4)
    bench.submit(list(range(20)), max_tokens=1)
    log = listen(bench)
    bench.drain()
    position = log.last_id
    bench.scheduler.kv_cache.forget_all()
    assert kinds(news(log, position)) == ["cleared"]
    bench.scheduler.check_integrity(deep=True)


def test_what_the_journal_brought_back_is_there_for_readers() -> None:
    journal = bytearray(64 * record_bytes(4))
    before = Bench(block_size=4, journal=KvJournal(memoryview(journal), 4))
    before.submit(list(range(10)), max_tokens=1)
    before.drain()
    after = Bench(block_size=4, memory=before.memory, journal=KvJournal(memoryview(journal), 4))
    assert kinds(list(listen(after).snapshot())) == ["cleared", "stored", "stored"]


def test_evicted_blocks_are_removed() -> None:
    bench = Bench(num_blocks=4, block_size=4, max_model_len=16)
    log = listen(bench)
    bench.submit(list(range(9)), max_tokens=1)
    bench.drain()
    stored = {event.stored.block_hash for event in news(log)}
    position = log.last_id
    bench.submit(list(range(100, 114)), max_tokens=1)
    bench.drain()
    removed = {e.removed.block_hash for e in news(log, position) if e.WhichOneof("event") == "removed"}
    assert removed == stored


async def read(batches: AsyncGenerator[monitor_pb2.KvEventBatch, None]) -> monitor_pb2.KvEventBatch:
    async with asyncio.timeout(PATIENCE_S):
        return await anext(batches)


async def test_a_reader_gets_what_is_there_and_then_what_happens() -> None:
    bench = Bench(block_size=4)
    bench.submit(list(range(10)), max_tokens=1)
    bench.drain()
    streams = KvEventStreams(bench.scheduler.kv_cache)
    batches = streams.batches("", 0)
    first = await read(batches)
    assert kinds(list(first.events)) == ["cleared", "stored", "stored"]
    assert [event.id for event in first.events][:-1] == [0, 0]
    position = first.events[-1].id
    assert position > 0
    bench.submit(list(range(50, 60)), max_tokens=1)
    bench.drain()
    second = await read(batches)
    assert [event.id for event in second.events] == [position + 1, position + 2], "what happens at once comes at once"
    assert second.source == first.source
    await batches.aclose()
    # It comes back: nobody listened meanwhile, but events were kept for a while.
    bench.submit(list(range(150, 160)), max_tokens=1)
    bench.drain()
    batches = streams.batches(second.source, second.events[-1].id)
    assert [event.id for event in (await read(batches)).events] == [position + 3, position + 4]
    await batches.aclose()


async def test_a_reader_that_lags_begins_anew() -> None:
    bench = Bench(block_size=4)
    streams = KvEventStreams(bench.scheduler.kv_cache, max_events=3)
    slow, quick = streams.batches("", 0), streams.batches("", 0)
    await read(slow)
    await read(quick)
    for base in (100, 200, 300):
        bench.submit(list(range(base, base + 9)), max_tokens=1)
        bench.drain()
        assert kinds(list((await read(quick)).events)) == ["stored", "stored"]
    assert kinds(list((await read(slow)).events)) == ["cleared", *["stored"] * 6]
    bench.submit(list(range(400, 409)), max_tokens=1)
    bench.drain()
    assert kinds(list((await read(slow)).events)) == ["stored", "stored"]
    await slow.aclose()
    await quick.aclose()


async def test_an_unknown_source_begins_anew() -> None:
    bench = Bench(block_size=4)
    streams = KvEventStreams(bench.scheduler.kv_cache)
    batches = streams.batches("another scheduler's", 1)
    assert kinds(list((await read(batches)).events)) == ["cleared"]
    await batches.aclose()


async def test_collecting_ends_some_time_after_the_last_reader_has_left() -> None:
    cache = Bench(block_size=4).scheduler.kv_cache
    streams = KvEventStreams(cache, linger_s=0.01)
    batches = streams.batches("", 0)
    source = (await read(batches)).source
    assert cache.prefixes.listener is not None
    await batches.aclose()
    async with asyncio.timeout(PATIENCE_S):
        while cache.prefixes.listener is not None:
            await asyncio.sleep(0.01)
    batches = streams.batches(source, 1)
    assert (await read(batches)).source != source, "what happened meanwhile is not known"
    await batches.aclose()
