"""The loop keeps the next plan on its way, and says what ends it."""

from __future__ import annotations

import asyncio

import pytest
from support.fake_executor import FakeExecutor, FakeKvMemory, true_output

from quire.columns import unpack_u32
from quire.errors import QuireError, ServiceUnavailableError
from quire.scheduler.kv_cache import KvCache
from quire.scheduler.outputs import OutputRouter
from quire.scheduler.request_checks import SchedulerLimits
from quire.scheduler.scheduler import Scheduler
from quire.scheduler.sequence import Request, RequestKey
from quire.scheduler.step_loop import StepLoop, Work
from quire.v1 import generate_pb2

EPOCH = 5


class FakeChannel:
    """Answers a plan only when the next one has come or none can come; remembers what happened."""

    def __init__(self, block_size: int) -> None:
        self.executor = FakeExecutor(FakeKvMemory(block_size))
        self.plans = asyncio.Queue()
        self.events: list[tuple[str, int]] = []
        self.failure: QuireError | None = None
        self.epoch = EPOCH

    async def send(self, plan):
        self.events.append(("sent", plan.step))
        await self.plans.put(plan)

    async def receive(self):
        await asyncio.sleep(0)
        if self.failure:
            raise self.failure
        result = self.executor.execute(await self.plans.get())
        result.epoch = self.epoch
        self.events.append(("received", result.step))
        return result


def _make() -> tuple[Scheduler, FakeChannel, OutputRouter, Work, StepLoop]:
    scheduler = Scheduler(KvCache(32, 4), SchedulerLimits(64, 8, 32))
    channel, router, work = FakeChannel(4), OutputRouter(), Work()
    return scheduler, channel, router, work, StepLoop(0, scheduler, channel, router, work, EPOCH)


def _request(number: int, max_tokens: int) -> Request:
    params = generate_pb2.SamplingParams(max_tokens=max_tokens)
    return Request(RequestKey("gateway", number), str(number), 0, params, frozenset())


async def _read_tokens(outputs, count: int) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < count:
        tokens += unpack_u32((await outputs.next_message()).token_ids)
    return tokens


async def test_plans_are_sent_before_the_result_before_them():
    scheduler, channel, router, work, loop = _make()
    outputs = router.open("gateway")
    running = asyncio.create_task(loop.run())
    await asyncio.sleep(0)
    scheduler.add_request(_request(0, 6), [1, 2, 3], {0: []})
    work.notify()
    async with asyncio.timeout(10):
        tokens = await _read_tokens(outputs, 6)
    assert tokens == true_output([1, 2, 3], 0, 6, frozenset())
    for step in range(1, 6):
        assert channel.events.index(("sent", step + 1)) < channel.events.index(("received", step))
    assert [record.step for record in loop.records] == list(range(1, 7))
    running.cancel()


async def test_a_failed_executor_ends_the_loop():
    scheduler, channel, _, _, loop = _make()
    scheduler.add_request(_request(0, 6), [1, 2, 3], {0: []})
    channel.failure = ServiceUnavailableError("gone")
    with pytest.raises(ServiceUnavailableError, match="gone"):
        await asyncio.wait_for(loop.run(), 10)


async def test_a_result_of_another_pool_is_refused():
    scheduler, channel, _, _, loop = _make()
    scheduler.add_request(_request(0, 6), [1, 2, 3], {0: []})
    channel.epoch = EPOCH + 1
    with pytest.raises(QuireError, match="was due"):
        await asyncio.wait_for(loop.run(), 10)
