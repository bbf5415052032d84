"""Several step loops over one scheduler and a pool that is too small: all of it ends, and with the right tokens."""

from __future__ import annotations

import asyncio
import random

import pytest
from support.fake_executor import FakeExecutor, FakeKvMemory, true_output

from quire.columns import unpack_u32, unpack_u64
from quire.scheduler.kv_cache import KvCache
from quire.scheduler.outputs import OutputRouter
from quire.scheduler.request_checks import SchedulerLimits
from quire.scheduler.scheduler import Scheduler
from quire.scheduler.sequence import Request, RequestKey
from quire.scheduler.step_loop import StepLoop, Work
from quire.v1 import generate_pb2

EPOCH = 5
# Far more than any of these histories needs; two lanes that preempt each other in turn would use them up.
MAX_PLANS = 6000


class Channel:
    """An executor that takes a varying number of turns of the event loop for a step."""

    def __init__(self, memory: FakeKvMemory, draw: random.Random, plans_left: list[int]) -> None:
        self._executor = FakeExecutor(memory)
        self._plans = asyncio.Queue()
        self._draw = draw
        self._plans_left = plans_left

    async def send(self, plan):
        self._plans_left[0] -= 1
        assert self._plans_left[0] > 0, "no end in sight: sequences take each other's blocks in turn"
        await self._plans.put(plan)

    async def receive(self):
        plan = await self._plans.get()
        for _ in range(self._draw.randrange(1, 6)):
            await asyncio.sleep(0)
        return self._executor.execute(plan)


async def _read(outputs, tokens: dict, done: asyncio.Event, num_sequences: int) -> None:
    """Collects tokens by (request, sequence) until all sequences have finished."""
    finished = 0
    while finished < num_sequences:
        message = await outputs.next_message()
        columns = zip(
            unpack_u64(message.request_keys),
            unpack_u32(message.sequence_indices),
            unpack_u32(message.positions),
            unpack_u32(message.token_ids),
            strict=True,
        )
        for key, index, position, token_id in columns:
            output = tokens.setdefault((key, index), [])
            assert position == len(output)
            output.append(token_id)
        finished += len(message.finished)
    done.set()


def _submit(scheduler: Scheduler, draw: random.Random, capacity: int) -> dict:
    """Random requests that may fit; returns what each sequence must get."""
    truth = {}
    for key in range(draw.randrange(2, 9)):
        shared = ([9, 8, 7] * 12)[: draw.randrange(0, 14)]
        prompt = (shared + [draw.randrange(4) for _ in range(draw.randrange(1, 7))])[: capacity - 1]
        max_tokens = min(draw.randrange(1, 14), capacity - len(prompt))
        n = draw.choice([1, 1, 2, 4, 8])
        params = generate_pb2.SamplingParams(max_tokens=max_tokens, n=n)
        request = Request(RequestKey("gateway", key), str(key), 0, params, frozenset())
        scheduler.add_request(request, prompt, {i: [] for i in range(n)})
        truth.update({(key, i): true_output(prompt, i, max_tokens, frozenset()) for i in range(n)})
    return truth


@pytest.mark.parametrize("seed", range(60))
async def test_everything_ends(seed):
    draw = random.Random(seed)
    num_blocks, block_size, num_lanes = draw.randrange(4, 20), draw.choice([1, 2, 4]), draw.choice([1, 2, 2, 3])
    capacity = num_blocks * block_size
    cache = KvCache(num_blocks, block_size, num_lanes=num_lanes, prefix_caching=draw.random() < 0.5)
    limits = SchedulerLimits(capacity, draw.randrange(1, 7), draw.choice([1, 2, 3, 5, 8, 40]))
    scheduler, router, work = Scheduler(cache, limits), OutputRouter(), Work()
    memory, plans_left = FakeKvMemory(block_size), [MAX_PLANS]
    truth = _submit(scheduler, draw, capacity)

    tokens, done = {}, asyncio.Event()
    outputs = router.open("gateway")
    channels = [Channel(memory, draw, plans_left) for _ in range(num_lanes)]
    loops = [StepLoop(i, scheduler, channel, router, work, EPOCH) for i, channel in enumerate(channels)]
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(loop.run()) for loop in loops]
        reading = group.create_task(_read(outputs, tokens, done, len(truth)))
        await done.wait()
        for task in running:
            task.cancel()
        await reading

    assert tokens == truth
    for lane in range(num_lanes):
        cache.acknowledge(lane, cache.lanes[lane].planned_step)
    scheduler.check_integrity(deep=True)
    assert cache.pool.num_held == 0
