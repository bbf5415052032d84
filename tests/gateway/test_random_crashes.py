"""Wherever a scheduler dies, however often: the output is that of an undisturbed run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.collected import PATIENCE_S, Collected, request, run
from support.fake_scheduler import FakeScheduler

from quire.gateway.scheduler_client import SchedulerClient
from quire.internal.v1 import scheduler_pb2

CASES = {
    "greedy": request(),
    "n = 4, logprobs": request(4, logprobs=2),
    "prompt logprobs": request(2, prompt_logprobs=1, max_tokens=5),
    "ignores the end of sequence": request(ignore_eos=True, max_tokens=40),
    "stop tokens": request(3, stop_token_ids=list(range(60, 100)), max_tokens=40),
    "one token": request(2, max_tokens=1),
    "beams": request(2, max_tokens=3, use_beam_search=True),
}


class Rig:
    """A client and its scheduler, in an event loop of their own."""

    def __init__(self, runner: asyncio.Runner, scheduler: FakeScheduler, client: SchedulerClient) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._client = client
        self._undisturbed = {name: self._run(name) for name in CASES}

    def check(self, name: str, crash_points: list[int]) -> None:
        """Compares a run in which the scheduler crashes, each time after so many messages."""
        assert self._runner.run(self._disturbed(name, crash_points)) == self._undisturbed[name]

    def _run(self, name: str) -> Collected:
        return self._runner.run(run(self._client, _copy(name)))

    async def _disturbed(self, name: str, crash_points: list[int]) -> Collected:
        scheduler = self._scheduler
        running = asyncio.create_task(run(self._client, _copy(name)))
        async with asyncio.timeout(PATIENCE_S):
            for crash_point in crash_points:
                scheduler.crash_after = crash_point
                while scheduler.crash_after is not None and not running.done():
                    await asyncio.sleep(0.001)
                scheduler.crash_after = None
                await scheduler.settle()
            return await running


def _copy(name: str) -> scheduler_pb2.SubmitRequest:
    message = scheduler_pb2.SubmitRequest()
    message.CopyFrom(CASES[name])
    return message


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder: Path = tmp_path_factory.mktemp("run")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        scheduler = FakeScheduler(folder / "s.sock")
        runner.run(scheduler.start())
        client = runner.run(SchedulerClient.connect(scheduler.address, PATIENCE_S))
        yield Rig(runner, scheduler, client)
        runner.run(client.close())
        runner.run(scheduler.stop())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(sorted(CASES)), crash_points=st.lists(st.integers(1, 12), min_size=1, max_size=3))
def test_whatever_the_scheduler_dies_after_the_output_is_the_same(rig: Rig, name: str, crash_points: list[int]) -> None:
    rig.check(name, crash_points)
