"""The scheduler's word against the pool's: sound at any moment of a real scheduler, and every leak is found."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from support.made_pools import LAYOUT, make_pool
from support.scheduling import Bench

from quire.inspect.findings import Finding, Kind, confirmed
from quire.inspect.inspection import look
from quire.inspect.live import SchedulerView, find_contradictions, find_leaks, read_view
from quire.inspect.processes import held_pools, open_pools
from quire.inspect.target import find_target
from quire.kv_journal import KvJournal, record_bytes
from quire.kv_pool import KvPool
from quire.scheduler.kv_state import describe_kv_cache

NUM_BLOCKS, BLOCK_SIZE = 24, 4


@pytest.fixture
def journal() -> KvJournal:
    return KvJournal(memoryview(bytearray(NUM_BLOCKS * record_bytes(BLOCK_SIZE))), BLOCK_SIZE)


@pytest.fixture
def bench(journal: KvJournal) -> Bench:
    return Bench(num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, journal=journal, num_lanes=2)


def _view(bench: Bench) -> SchedulerView:
    """As the scheduler's process answers."""
    return read_view(describe_kv_cache(bench.scheduler, with_blocks=True))


def _numbers(journal: KvJournal) -> list[int]:
    return [journal.number(block) for block in range(NUM_BLOCKS)]


@pytest.mark.parametrize("seed", range(5))
def test_a_scheduler_is_sound_at_every_moment(bench: Bench, journal: KvJournal, seed: int):
    draw = random.Random(seed)
    most_shared = 0
    for _ in range(60):
        lane = draw.randrange(2)
        choice = draw.random()
        if choice < 0.25:
            bench.submit([1, 2, 3, 4, 5, 6, 7, 8, draw.randrange(9)], n=draw.choice([1, 3]), max_tokens=8)
        elif choice < 0.6 and bench.in_flight(lane) < 3:
            bench.plan(lane)
        elif choice < 0.8 and bench.lanes[lane].sent:
            bench.compute(lane)
        elif bench.lanes[lane].computed:
            bench.deliver(lane)
        elif bench.scheduler.requests and choice > 0.95:
            bench.scheduler.abort(next(iter(bench.scheduler.requests)))
        view = _view(bench)
        assert find_leaks(view) == []
        assert find_contradictions(view, _numbers(journal)) == []
        most_shared = max([most_shared, *view.ref_counts])
    assert most_shared > 1, "the history has shared blocks"


def test_a_block_that_nobody_names_is_a_leak(bench: Bench):
    leaked = bench.scheduler.kv_cache.pool.take()
    assert [(found.kind, found.block) for found in find_leaks(_view(bench))] == [(Kind.LEAK, leaked.id)]


def test_a_table_that_names_a_free_block(bench: Bench):
    submitted = bench.submit([1, 2, 3, 4, 5])
    bench.step(0)
    (sequence,) = submitted.sequences
    named = sequence.blocks[-1]
    bench.scheduler.kv_cache.pool.release(named)
    assert [(found.kind, found.block) for found in find_leaks(_view(bench))] == [(Kind.OVERUSED, named.id)]


def test_counts_that_do_not_add_up(bench: Bench):
    bench.scheduler.kv_cache.pool.num_held += 1
    assert [found.kind for found in find_leaks(_view(bench))] == [Kind.COUNTS]


def test_a_record_of_a_block_that_is_free_or_holds_something_else(bench: Bench, journal: KvJournal):
    bench.submit([1, 2, 3, 4, 5])
    bench.step(0)
    (known,) = [block for block in range(NUM_BLOCKS) if block in journal]
    free = known + 1
    journal.write(free, 99, 0, b"h" * 32, b"", bytes(16))
    journal.write(known, 98, 0, b"h" * 32, b"", bytes(16))
    found = find_contradictions(_view(bench), _numbers(journal))
    assert [(finding.kind, finding.block, finding.content) for finding in found] == [
        (Kind.CONTRADICTED, known, 98),
        (Kind.CONTRADICTED, free, 99),
    ]
    assert "may be written" in found[1].text


def test_only_what_is_seen_twice_counts():
    once, twice = Finding(Kind.LEAK, "held 1 times", 3), Finding(Kind.LEAK, "held 1 times", 4)
    later = Finding(Kind.LEAK, "held 2 times", 4)
    other_content = Finding(Kind.TORN, "", 5, 8)
    assert confirmed([once, twice, Finding(Kind.TORN, "", 5, 7)], [later, other_content]) == [later]


# What is left of a server whose scheduler and supervisor are gone: an executor that only maps its pool.
_LONE_EXECUTOR = """
import mmap, os, setproctitle, sys
setproctitle.setproctitle("quire: executor 0")
pool = int(sys.argv[1])
mapped = mmap.mmap(pool, os.fstat(pool).st_size)
os.close(pool)
print("ready", flush=True)
sys.stdin.read()
"""


def test_memory_that_only_an_executor_keeps_is_unserved(tmp_path: Path):
    """It has no descriptor either: one that somebody else has is how its pool is opened."""
    with KvPool.create_memfd(LAYOUT) as pool:
        executor = subprocess.Popen(
            [sys.executable, "-P", "-c", _LONE_EXECUTOR, str(pool.fd)],
            pass_fds=[pool.fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        with executor:
            assert executor.stdout is not None and executor.stdout.readline() == b"ready\n"
            status = os.fstat(pool.fd)
            identity = status.st_dev, status.st_ino
            with Path("/dev/null").open() as other:
                held = held_pools(other.fileno())[identity]
                assert {holder.pid for holder in held.holders} == {os.getpid(), executor.pid}
                assert not held.is_unserved
                opened = open_pools(executor.pid)
                assert list(opened) == [identity]
                for descriptor in opened.values():
                    os.close(descriptor)
                pool.close()
                held = held_pools(other.fileno())[identity]
            assert held.is_unserved
            assert held.size == LAYOUT.total_bytes
            (holder,) = held.holders
            assert (holder.pid, holder.title) == (executor.pid, "quire: executor 0")
            assert executor.pid in _keepers(make_pool(tmp_path / "another"))
            executor.communicate(timeout=60)
    assert executor.pid not in _keepers(tmp_path / "another")


def _keepers(path: Path) -> set[int]:
    """Processes that keep pools in memory which nobody serves, as an inspection of any pool reports them."""
    target = find_target(str(path))
    try:
        return {finding.content for finding in look(target).findings if finding.kind is Kind.UNSERVED}
    finally:
        target.close()
