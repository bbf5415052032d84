"""A lane over executors that come and go: gateways see every token once and in order, and who is live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from support.fake_executor import FakeKvMemory, true_output
from support.fake_links import DEATHS, HANGS, LIVES, FakeConnector, channel_of

from quire.columns import unpack_u32, unpack_u64
from quire.errors import ServiceUnavailableError
from quire.scheduler.executor_client import ExecutorClient
from quire.scheduler.executor_link import ForeignExecutorError
from quire.scheduler.kv_cache import KvCache
from quire.scheduler.lane import Lane
from quire.scheduler.lost_steps import BLAME, MAX_LOST_STEPS
from quire.scheduler.outputs import GatewayOutputs, OutputRouter
from quire.scheduler.request_checks import SchedulerLimits
from quire.scheduler.scheduler import Scheduler
from quire.scheduler.sequence import Request, RequestKey
from quire.scheduler.step_loop import StepLoop, Work
from quire.scheduler.watchdog import Watchdog
from quire.v1 import generate_pb2

EPOCH, BLOCK_SIZE = 5, 4
PROMPT = [1, 2, 3, 4, 5, 6, 7]


@dataclass
class Rig:
    """A scheduler, its lanes, and one gateway's stream."""

    scheduler: Scheduler
    work: Work
    connectors: list[FakeConnector]
    lanes: list[Lane]
    running: list[asyncio.Task[None]]
    outputs: GatewayOutputs
    tokens: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    num_live: list[int] = field(default_factory=list)
    num_finished: int = 0

    def submit(self, number: int, n: int = 1, max_tokens: int = 12) -> None:
        params = generate_pb2.SamplingParams(n=n, max_tokens=max_tokens)
        request = Request(RequestKey("gateway", number), str(number), 0, params, frozenset())
        self.scheduler.add_request(request, [*PROMPT, number], {i: [] for i in range(n)})
        self.work.notify()

    async def finish(self, num_sequences: int) -> None:
        """Takes messages until so many sequences have finished, in all."""
        await self.read(lambda: self.num_finished >= num_sequences)

    async def read(self, done: Callable[[], bool]) -> None:
        """Takes messages until it is done."""
        while not done():
            message = await self.outputs.next_message()
            keys, indices = unpack_u64(message.request_keys), unpack_u32(message.sequence_indices)
            positions, token_ids = unpack_u32(message.positions), unpack_u32(message.token_ids)
            for key, index, position, token_id in zip(keys, indices, positions, token_ids, strict=True):
                known = self.tokens.setdefault((key, index), [])
                assert position == len(known), "a token came twice, or one is missing"
                known.append(token_id)
            self.num_finished += len(message.finished)
            self.failures += [failed.message for failed in message.failed]
            if message.HasField("state"):
                self.num_live.append(message.state.num_live_executors)

    def check(self, number: int, n: int = 1, max_tokens: int = 12) -> None:
        for index in range(n):
            truth = true_output([*PROMPT, number], index, max_tokens, frozenset())
            assert self.tokens[number, index] == truth

    def check_idle(self) -> None:
        self.scheduler.check_integrity(deep=True)
        assert not self.scheduler.requests
        assert all(link.channel.is_closed for connector in self.connectors for link in connector.fenced)


@asynccontextmanager
async def _rig(
    *ends: Iterable[tuple[str, int]], refusals: int = 0, watchdog: Watchdog | None = None, outlives: bool = True
) -> AsyncIterator[Rig]:
    """With a lane for each of `ends`, which says how its executors end."""
    memory, work, router = FakeKvMemory(BLOCK_SIZE), Work(), OutputRouter()
    scheduler = Scheduler(KvCache(48, BLOCK_SIZE, num_lanes=len(ends)), SchedulerLimits(64, 8, 32))
    connectors = [FakeConnector(memory, own, refusals, outlives=outlives) for own in ends]
    lanes = []
    for index, connector in enumerate(connectors):
        client = ExecutorClient(index, "unix:/nowhere")
        link = await connector.connect(client) if not refusals else await _connect_in_the_end(connector, client)
        steps = StepLoop(index, scheduler, link.channel, router, work, EPOCH)
        lanes.append(Lane(link, connector, steps, scheduler, router, work, watchdog or Watchdog(600)))
    async with asyncio.timeout(60):
        running = [asyncio.create_task(lane.run()) for lane in lanes]
        try:
            yield Rig(scheduler, work, connectors, lanes, running, router.open("gateway"))
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            for lane in lanes:
                await lane.close()


async def _connect_in_the_end(connector: FakeConnector, client: ExecutorClient):
    while True:
        try:
            return await connector.connect(client)
        except ServiceUnavailableError:
            continue


@pytest.mark.parametrize("last_step", [1, 2, 5])
@pytest.mark.parametrize("end", DEATHS)
async def test_one_executor_after_the_other_dies(end, last_step):
    async with _rig([(end, last_step), (end, last_step + 1)]) as rig:
        rig.submit(0, n=4)
        rig.submit(1)
        await rig.finish(5)
        rig.check(0, n=4)
        rig.check(1)
        assert rig.scheduler.num_lost_lanes == len(rig.connectors[0].fenced) == 2
        assert rig.num_live[-1] == 1
        rig.check_idle()


async def test_an_executor_that_dies_before_it_can_take_steps():
    async with _rig([(DEATHS[1], 3)], refusals=2) as rig:
        rig.submit(0)
        await rig.finish(1)
        rig.check(0)
        assert rig.scheduler.num_lost_lanes == 1


@pytest.mark.parametrize("end", [DEATHS[2], LIVES])
async def test_a_pool_that_is_the_executors_own_memory_is_lost_with_it(end):
    """Whatever the prefix cache knew is computed again."""
    async with _rig([(end, 6)], outlives=False) as rig:
        rig.submit(0, max_tokens=30)
        await rig.read(lambda: len(rig.tokens.get((0, 0), ())) >= 3)
        if end == LIVES:
            await rig.lanes[0].replace("unix:/elsewhere")
        await rig.finish(1)
        rig.check(0, max_tokens=30)
        assert len(rig.connectors[0].links) == 2


async def test_the_other_lane_goes_on_meanwhile():
    async with _rig([(DEATHS[1], 2)], []) as rig:
        rig.connectors[0].failure = ServiceUnavailableError("nobody starts it again")
        for number in range(4):
            rig.submit(number)
        await rig.finish(4)
        for number in range(4):
            rig.check(number)
        assert rig.num_live == [1]
        rig.connectors[0].failure = None
        rig.submit(9)
        await rig.finish(5)
        rig.check(9)
        await rig.read(lambda: rig.num_live == [1, 2])


async def _turn(_: float) -> None:
    """A check of the watchdog's in no time."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_an_executor_that_hangs_is_lost():
    async with _rig([(HANGS, 3)], watchdog=Watchdog(20, sleep=_turn)) as rig:
        rig.submit(0)
        await rig.finish(1)
        rig.check(0)
        assert rig.scheduler.num_lost_lanes == 1
        rig.check_idle()


async def test_a_request_that_kills_every_executor_ends_alone():
    async with _rig([(DEATHS[1], 1)] * MAX_LOST_STEPS) as rig:
        rig.submit(0)
        await rig.read(lambda: bool(rig.failures))
        assert rig.failures == [BLAME]
        rig.submit(1)
        await rig.finish(1)
        rig.check(1)


async def test_another_model_in_its_place_ends_the_scheduler():
    async with _rig([(DEATHS[0], 2)]) as rig:
        rig.connectors[0].failure = ForeignExecutorError("it serves another model")
        rig.submit(0)
        with pytest.raises(ForeignExecutorError, match="another model"):
            await rig.running[0]


async def test_replacing_an_executor_in_the_middle():
    async with _rig([]) as rig:
        rig.submit(0, n=2, max_tokens=40)
        await rig.read(lambda: bool(rig.tokens))
        await rig.lanes[0].replace("unix:/elsewhere")
        old, new = rig.connectors[0].links
        assert rig.lanes[0].description.pid == new.description.pid
        assert channel_of(old).is_closed
        await rig.finish(2)
        rig.check(0, n=2, max_tokens=40)
        assert rig.connectors[0].fenced == []
        assert rig.scheduler.num_lost_lanes == 0


async def test_a_replacement_that_cannot_be_had_changes_nothing():
    async with _rig([]) as rig:
        rig.connectors[0].failure = ServiceUnavailableError("there is nobody")
        with pytest.raises(ServiceUnavailableError, match="there is nobody"):
            await rig.lanes[0].replace("unix:/elsewhere")
        rig.submit(0)
        await rig.finish(1)
        rig.check(0)
        assert len(rig.connectors[0].links) == 1


async def test_a_replacement_for_an_executor_that_never_comes_back():
    async with _rig([(DEATHS[0], 2)]) as rig:
        rig.connectors[0].failure = ServiceUnavailableError("nobody starts it again")
        rig.submit(0)
        while rig.scheduler.live_lanes:
            await asyncio.sleep(0)
        rig.connectors[0].failure = None
        await rig.lanes[0].replace("unix:/elsewhere")
        await rig.finish(1)
        rig.check(0)


async def test_two_replacements_at_a_time_are_refused():
    async with _rig([]) as rig:
        first = asyncio.create_task(rig.lanes[0].replace("unix:/one"))
        await asyncio.sleep(0)
        with pytest.raises(ServiceUnavailableError, match="is being replaced already"):
            await rig.lanes[0].replace("unix:/two")
        await first
        await rig.lanes[0].replace("unix:/two")


async def test_an_answer_that_makes_no_sense_costs_the_executor_and_not_the_token():
    async with _rig([]) as rig:
        channel = channel_of(rig.connectors[0].links[0])
        receive, num_received = channel.receive, 0

        async def confused():
            nonlocal num_received
            num_received += 1
            result = await receive()
            if num_received == 3:
                result.token_ids += bytes(4)
            return result

        channel.receive = confused
        rig.submit(0)
        await rig.finish(1)
        rig.check(0)
        assert rig.scheduler.num_lost_lanes == 1
