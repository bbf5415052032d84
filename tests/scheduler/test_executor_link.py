"""Real processes at the other end: they are ended for certain, or the pool is given up; only equals succeed them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.executor_process import BLOCK_SIZE, executor_process
from support.fake_executor import true_output

from quire.columns import unpack_u32
from quire.config import SchedulerSettings
from quire.errors import QuireError
from quire.kv_layout import CacheGroupLayout, KvPoolLayout, PoolState
from quire.kv_pool import KvPool
from quire.scheduler.executor_client import ExecutorClient
from quire.scheduler.executor_link import ExecutorConnector, ForeignExecutorError
from quire.scheduler.kv_cache import KvCache
from quire.scheduler.lane import Lane
from quire.scheduler.outputs import OutputRouter
from quire.scheduler.pool_home import PoolHome
from quire.scheduler.request_checks import SchedulerLimits
from quire.scheduler.scheduler import Scheduler
from quire.scheduler.sequence import Request, RequestKey
from quire.scheduler.step_loop import StepLoop, Work
from quire.scheduler.swap_home import SwapHome
from quire.scheduler.watchdog import HungExecutorError, Watchdog
from quire.v1 import generate_pb2

EPOCH, NUM_BLOCKS = 5, 32


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/executor.sock"


@pytest.fixture
async def client(address: str) -> AsyncIterator[ExecutorClient]:
    client = ExecutorClient(0, address)
    yield client
    await client.close()


def _make_pool(num_ranks: int) -> KvPool:
    group = CacheGroupLayout(num_layers=1, num_kv_heads=1, head_dim=1, element_bytes=4)
    return KvPool.create_memfd(KvPoolLayout(BLOCK_SIZE, NUM_BLOCKS, num_ranks, EPOCH, b"same".ljust(32), (group,)))


@pytest.fixture
def pool() -> Iterator[KvPool]:
    with _make_pool(1) as pool:
        yield pool


@pytest.fixture
def provided() -> Iterator[KvPool]:
    """The journal of a pool that the executor provides."""
    with _make_pool(0) as pool:
        yield pool


async def _connector(client: ExecutorClient, pool: KvPool, address: str, **options: object) -> ExecutorConnector:
    given = {"listen": "unix:/none", "executors": [address], "startup_timeout": 60, **options}
    settings = SchedulerSettings.load(given)
    home = PoolHome(pool, NUM_BLOCKS, None)
    return ExecutorConnector(settings, home, SwapHome(None), await client.describe(60))


@pytest.mark.parametrize("number", [None, signal.SIGSTOP, signal.SIGKILL])
async def test_an_executor_is_dead_once_it_is_fenced(client, pool, address, number):
    with executor_process(address, "same") as process:
        connector = await _connector(client, pool, address)
        link = await connector.connect(client)
        assert link.description.pid == process.pid
        if number is not None:
            process.send_signal(number)
        await connector.fence(link)
        assert process.wait(0) == -signal.SIGKILL
        await link.close()
    assert pool.header.state is PoolState.OPEN


async def test_a_pool_that_someone_may_still_write_is_given_up(client, pool, address, monkeypatch):
    with executor_process(address, "same"):
        connector = await _connector(client, pool, address)
        link = await connector.connect(client)
        monkeypatch.setattr("quire.scheduler.executor_link._FENCE_TIMEOUT_S", 0.1)
        with monkeypatch.context() as patch:
            patch.setattr(signal, "pidfd_send_signal", lambda *_: None)
            with pytest.raises(QuireError, match="may still write the KV pool"):
                await connector.fence(link)
        await link.close()
    assert pool.header.state is PoolState.DISCARDED


async def test_a_pool_of_the_executors_memory_outlives_one_that_can_be_ended(client, provided, address, monkeypatch):
    with executor_process(address, "same"):
        connector = await _connector(client, provided, address)
        link = await connector.connect(client)
        assert link.has_content
        monkeypatch.setattr("quire.scheduler.executor_link._FENCE_TIMEOUT_S", 0.1)
        with monkeypatch.context() as patch:
            patch.setattr(signal, "pidfd_send_signal", lambda *_: None)
            with pytest.raises(QuireError, match="may still write the KV pool"):
                await connector.fence(link)
        await link.close()
    assert provided.header.state is PoolState.DISCARDED


async def test_an_executor_that_nobody_can_end_gets_new_memory(client, provided, address, monkeypatch):
    """As on another host: the one before it may still write the old."""
    with executor_process(address, "same"):
        connector = await _connector(client, provided, address, step_transport="grpc")
        monkeypatch.setattr(ExecutorClient, "identify", lambda client, peers: None)
        link = await connector.connect(client)
        assert not link.has_content
        await connector.fence(link)
        await link.close()
    assert provided.header.state is PoolState.OPEN


async def test_another_model_gets_nothing(client, pool, address):
    with executor_process(address, "same"):
        connector = await _connector(client, pool, address)
    with (
        executor_process(address, "other"),
        pytest.raises(ForeignExecutorError, match="executor 0 cannot succeed the one before it"),
    ):
        await connector.connect(client)


async def test_an_executor_in_which_an_old_step_hangs_is_ended(client, pool, address):
    with executor_process(address, "same", hanging_step=-1) as process:
        connector = await _connector(client, pool, address, watchdog_timeout=1)
        with pytest.raises(HungExecutorError):
            await connector.connect(client)
        assert process.wait(30) == -signal.SIGKILL


async def test_a_kernel_that_never_returns(client, pool, address):
    """The process answers everything but its step; its counters alone give it away. Its successor goes on."""
    with contextlib.ExitStack() as processes:
        hanging = processes.enter_context(executor_process(address, "same", hanging_step=4))
        connector = await _connector(client, pool, address)
        # Each process of this test has blocks of its own.
        cache = KvCache(NUM_BLOCKS, BLOCK_SIZE, prefix_caching=False)
        scheduler, router, work = Scheduler(cache, SchedulerLimits(64, 8, 32)), OutputRouter(), Work()
        outputs, link = router.open("gateway"), await connector.connect(client)
        steps = StepLoop(0, scheduler, link.channel, router, work, EPOCH)
        lane = Lane(link, connector, steps, scheduler, router, work, Watchdog(2.0))
        running = asyncio.create_task(lane.run())
        request = Request(RequestKey("gateway", 0), "0", 0, generate_pb2.SamplingParams(max_tokens=12), frozenset())
        scheduler.add_request(request, [1, 2, 3], {0: []})
        work.notify()
        async with asyncio.timeout(120):
            assert await asyncio.to_thread(hanging.wait) == -signal.SIGKILL
            processes.enter_context(executor_process(address, "same"))
            tokens: list[int] = []
            while len(tokens) < 12:
                tokens += unpack_u32((await outputs.next_message()).token_ids)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await lane.close()
    assert tokens == true_output([1, 2, 3], 0, 12, frozenset())
    assert scheduler.num_lost_lanes == 1
