"""Processes are killed while sixteen streams of every kind run (cases 1 to 3).

Whole answers are compared with those of an undisturbed run: text, token ids, logprobs, finish reasons, usage, order.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Iterator

import pytest
from support.chaos.baseline import Baseline
from support.chaos.measurements import record
from support.chaos.phases import Killer, Phase
from support.chaos.server import ChaosServer, chaos_server
from support.chaos.streams import answers, check_equal, running
from support.chaos.workload import mixed_workload

# Then the workload is let end, so that no client waits for ever, and begun again.
KILLS_PER_RUN = 2
FEW = pytest.param(3, marks=pytest.mark.chaos_sample)


@pytest.fixture(scope="module")
def server() -> Iterator[ChaosServer]:
    with chaos_server() as started:
        asyncio.run(answers(started, mixed_workload(40)))
        yield started


@pytest.mark.parametrize("kills", [FEW, 20])
def test_1_executor_killed(server, baseline, reference, kills):
    """Case 1: kill -9 of the executor, 16 streams, 20 kills over every phase of a step.

    Passes if every answer is the undisturbed one, every phase was hit, and the baseline is back.
    """
    check_phases(kill_under_load(server, reference, Killer(server, "executor 0", seed=1), kills, case=1), kills)


@pytest.mark.parametrize("kills", [FEW, 20])
def test_2_scheduler_killed(server, baseline, reference, kills):
    """Case 2: as case 1, for the scheduler."""
    kill_under_load(server, reference, Killer(server, "scheduler", seed=2), kills, case=2)


def test_3_both_killed(server, baseline, reference):
    """Case 3, first part: executor and scheduler at once."""
    kill_under_load(server, reference, Killer(server, "executor 0", "scheduler", seed=3), 6, case=3)


def test_3_killed_during_eviction(reference):
    """Case 3, second part: both are killed in turn while the pool is too small for what runs: blocks change hands.

    Passes if blocks were evicted or sequences preempted, every answer is the undisturbed one, and a second run, which
    hits what the journal kept, gives the same again.
    """
    with chaos_server(kv_cache_memory="5MiB") as small:
        asyncio.run(answers(small, mixed_workload(40)))
        baseline = Baseline.take(small)
        for seed, title in enumerate(["executor 0", "scheduler", "executor 0"]):
            kill_under_load(small, reference, Killer(small, title, seed=seed), 2, case=3)
        before = small.kv_state()
        check_equal(asyncio.run(answers(small, mixed_workload())), reference)
        after = small.kv_state()
        assert after.num_preemptions > before.num_preemptions
        assert after.num_restored_blocks > 0, "the scheduler that serves has read nothing in the journal"
        baseline.check(small)


def kill_under_load(server: ChaosServer, reference: dict, killer: Killer, kills: int, case: int) -> Killer:
    """Runs the workload as often as it takes for so many kills; each run's answers must be the reference."""

    async def disturb() -> float:
        async with running(server, mixed_workload()) as streams:
            await streams.until_each_has(3)
            target = min(kills, len(killer.kills) + KILLS_PER_RUN)
            await asyncio.to_thread(killer.run, target, lambda: streams.num_unfinished == 0)
            check_equal(await streams.answers(), reference)
            return streams.longest_pause_s

    pauses = []
    while len(killer.kills) < kills:
        pauses.append(asyncio.run(disturb()))
    names = " and ".join(title.split()[0] for title in killer.kills[0].titles)
    record(case, f"longest pause of a stream, {names} killed", max(pauses), "s", "5 s at most")
    record(case, f"kills, {names}", len(killer.kills), "")
    record(
        case,
        f"from the kill to the next step, {names}, median",
        statistics.median(kill.recovery_s for kill in killer.kills),
        "s",
    )
    return killer


def check_phases(killer: Killer, kills: int) -> None:
    """Every phase was hit at least once, where there were kills enough to expect it."""
    hit = {kill.hit for kill in killer.kills}
    assert kills < 2 * len(Phase) or hit == set(Phase), f"only {hit}"
