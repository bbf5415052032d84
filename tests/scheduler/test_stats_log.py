"""A line of statistics for each period in which something was computed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import pytest
from support.scheduling import Bench

from quire.scheduler.stats_log import log_stats

PERIOD_S = 0.05


@contextlib.asynccontextmanager
async def _logging(bench: Bench) -> AsyncIterator[None]:
    task = asyncio.create_task(log_stats(bench.scheduler, PERIOD_S))
    await asyncio.sleep(0)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _wait_for_line(caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    async with asyncio.timeout(30):
        while not caplog.records:
            await asyncio.sleep(0.01)
    return caplog.records[0]


async def test_a_line_says_what_was_computed_and_what_is_left(caplog):
    caplog.set_level(logging.INFO)
    bench = Bench(num_blocks=64, block_size=4)
    bench.submit(list(range(12)))
    bench.drain()
    async with _logging(bench):
        bench.submit(list(range(12)), max_tokens=2)
        bench.drain()
        bench.submit([50, 51, 52], max_tokens=40)
        bench.step()
        fields = vars(await _wait_for_line(caplog))
    assert fields["event"] == "stats"
    # 8 of 12 and none of 3 were cached; 2 tokens and 1 were generated.
    assert fields["prompt_tokens_per_s"] / fields["generated_tokens_per_s"] == pytest.approx(7 / 3, rel=0.1)
    assert fields["prefix_hit_rate"] == pytest.approx(8 / 15, abs=1e-3)
    assert (fields["requests_running"], fields["requests_waiting"]) == (1, 0)
    assert fields["kv_cache_usage"] == pytest.approx(1 / 64, abs=1e-3)
    assert "1 running, 0 waiting, KV cache 1.6 %, prefix hits 53.3%" in caplog.text


async def test_nothing_is_said_of_a_scheduler_that_is_idle(caplog):
    caplog.set_level(logging.INFO)
    bench = Bench()
    bench.submit([1, 2, 3])
    bench.drain()
    async with _logging(bench):
        await asyncio.sleep(4 * PERIOD_S)
        assert not caplog.records
        bench.submit([1, 2, 3])
        bench.drain()
        await _wait_for_line(caplog)
