"""Executors for a `Lane`, without a process: each dies, hangs or lives on as the test says."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any

from support.fake_executor import FakeExecutor, FakeKvMemory

from quire.errors import QuireError, ServiceUnavailableError
from quire.internal.v1 import executor_pb2
from quire.peers import Peers
from quire.scheduler.executor_client import ExecutorClient
from quire.scheduler.executor_link import ExecutorLink

# Where an executor meets its end, in the step that it does not survive.
DEATHS = ["when a plan is sent", "before it computes", "before it answers", "between steps"]
HANGS = "hangs"
LIVES = "lives"


class FakeChannel:
    """An executor that ends in its `last_step`th step (counted from 1) as `end` says."""

    def __init__(self, memory: FakeKvMemory, end: str, last_step: int) -> None:
        self._executor = FakeExecutor(memory)
        self._end, self._last_step = end, last_step
        self._plans: asyncio.Queue[executor_pb2.StepPlan] = asyncio.Queue()
        self._num_sent = self._num_answered = 0
        self.is_closed = False

    async def send(self, plan: executor_pb2.StepPlan) -> None:
        self._num_sent += 1
        if self._num_sent == self._last_step and self._end == "when a plan is sent":
            raise ServiceUnavailableError(self._end)
        await self._plans.put(plan)

    async def receive(self) -> executor_pb2.StepResult:
        plan = await self._plans.get()
        is_last = self._num_answered + 1 == self._last_step
        if is_last and self._end == HANGS:
            await asyncio.Event().wait()
        if is_last and self._end == "before it computes":
            raise ServiceUnavailableError(self._end)
        result = self._executor.execute(plan)
        if (is_last and self._end == "before it answers") or (
            self._num_answered == self._last_step and self._end == "between steps"
        ):
            raise ServiceUnavailableError(self._end)
        await asyncio.sleep(0)
        self._num_answered += 1
        return result

    async def progress(self) -> int:
        return self._num_answered

    async def close(self) -> None:
        self.is_closed = True


class FakeConnector:
    """Gives the lane one executor after the other; those that are not described live on."""

    def __init__(
        self,
        memory: FakeKvMemory,
        ends: Iterable[tuple[str, int]] = (),
        refusals: int = 0,
        *,
        outlives: bool = True,
    ) -> None:
        """`refusals` come before each executor. Where the pool does not outlive an executor, each has its own."""
        self._memory = memory
        self._outlives = outlives
        self._ends = deque(ends)
        self._refusals = self._refusals_left = refusals
        self.links: list[ExecutorLink] = []
        self.fenced: list[ExecutorLink] = []
        # What fails instead of the next connection.
        self.failure: QuireError | None = None

    async def connect(self, client: ExecutorClient) -> ExecutorLink:
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        if self._refusals_left:
            self._refusals_left -= 1
            raise ServiceUnavailableError("the executor died while it attached the pool")
        self._refusals_left = self._refusals
        end, last_step = self._ends.popleft() if self._ends else (LIVES, 0)
        description = executor_pb2.ExecutorDescription(pid=1000 + len(self.links))
        memory = self._memory if self._outlives else FakeKvMemory(self._memory.block_size)
        self.links.append(
            ExecutorLink(client, description, FakeChannel(memory, end, last_step), Peers(), self._outlives)
        )
        return self.links[-1]

    async def fence(self, link: ExecutorLink) -> None:
        self.fenced.append(link)


def channel_of(link: ExecutorLink) -> Any:
    """Its FakeChannel."""
    return link.channel
