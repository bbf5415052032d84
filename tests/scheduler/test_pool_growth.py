"""The pool opens with a part of its blocks and gets the others while requests run."""

from __future__ import annotations

import asyncio
import os

import pytest

from quire.errors import KvPoolError
from quire.kv_layout import CacheGroupLayout, KvPoolLayout
from quire.kv_pool import KvPool
from quire.scheduler import pool_growth
from quire.scheduler.block_pool import BlockPool
from quire.scheduler.pool_growth import grow, num_first_blocks
from quire.scheduler.step_loop import Work

# Blocks of 16 KiB.
LAYOUT = KvPoolLayout(16, 64, 1, 1, bytes(32), (CacheGroupLayout(1, 2, 128, 2),))


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_growth, "_FIRST_BYTES", 4 * LAYOUT.block_bytes)
    monkeypatch.setattr(pool_growth, "_PART_BYTES", 10 * LAYOUT.block_bytes)


def _allocated_bytes(pool: KvPool) -> int:
    return os.fstat(pool.fd).st_blocks * 512


@pytest.mark.parametrize(("max_model_len", "expected"), [(16, 4), (64, 4), (65, 5), (1024, 64), (4096, 64)])
def test_one_request_of_full_length_fits_at_once(max_model_len: int, expected: int) -> None:
    assert num_first_blocks(LAYOUT, max_model_len) == expected


async def test_all_blocks_are_usable_in_the_end_and_have_their_memory() -> None:
    with KvPool.create_memfd(LAYOUT, 4) as pool:
        blocks, work = BlockPool(LAYOUT.num_blocks, 4), Work()
        assert _allocated_bytes(pool) < 6 * LAYOUT.block_bytes
        held = [blocks.take() for _ in range(4)]
        assert blocks.num_available == 0
        waiter = asyncio.create_task(work.wait())
        await asyncio.sleep(0)
        await grow(pool, blocks, work)
        await asyncio.wait_for(waiter, 1)
        assert blocks.num_available == LAYOUT.num_blocks - 4
        assert _allocated_bytes(pool) >= LAYOUT.num_blocks * LAYOUT.block_bytes
        for block in held:
            blocks.release(block)
        assert len({blocks.take().id for _ in range(LAYOUT.num_blocks)}) == LAYOUT.num_blocks


async def test_without_memory_the_pool_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with KvPool.create_memfd(LAYOUT, 4) as pool:
        blocks, allocate = BlockPool(LAYOUT.num_blocks, 4), pool.allocate

        def fail_late(first_block: int, end_block: int) -> None:
            if first_block > 4:
                raise KvPoolError("no memory")
            allocate(first_block, end_block)

        monkeypatch.setattr(pool, "allocate", fail_late)
        await grow(pool, blocks, Work())
        assert blocks.num_usable == 14
        assert "stays at 14 of 64 blocks" in caplog.text
        blocks.check_list()


async def test_the_end_of_the_server_waits_for_the_part_in_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    with KvPool.create_memfd(LAYOUT, 4) as pool:
        started, finish, finished = asyncio.Event(), asyncio.Event(), []
        loop = asyncio.get_running_loop()

        def slow(first_block: int, end_block: int) -> None:
            loop.call_soon_threadsafe(started.set)
            asyncio.run_coroutine_threadsafe(finish.wait(), loop).result(10)
            finished.append(end_block)

        monkeypatch.setattr(pool, "allocate", slow)
        growth = asyncio.create_task(grow(pool, BlockPool(LAYOUT.num_blocks, 4), Work()))
        await started.wait()
        growth.cancel()
        await asyncio.sleep(0.01)
        assert not growth.done()
        finish.set()
        with pytest.raises(asyncio.CancelledError):
            await growth
        assert finished == [14]
