"""What a keeper does with processes that die, do not start, or are replaced; the processes only pretend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio

from quire.config import LocalSettings
from quire.errors import StartupError
from quire.supervision.backoff import MAX_FAILED_STARTS
from quire.supervision.child import Child, ChildSpec
from quire.supervision.keeper import Keeper


class FakeChild:
    """A process that starts, or fails to, at once, and ends when it is told."""

    def __init__(self, name: str, *, starts: bool) -> None:
        self.name = name
        self.starts = starts
        self.ended = asyncio.Event()

    async def until_ready(self, timeout_s: float) -> None:
        await asyncio.sleep(0)
        if not self.starts:
            raise StartupError(f"{self.name}: no luck")

    async def until_ended(self) -> None:
        await self.ended.wait()

    async def end(self, timeout_s: float) -> None:
        self.ended.set()

    def describe_end(self) -> str:
        return f"{self.name} died"


class FakeSpec:
    """Starts fake processes, of which the n-th serves if the n-th outcome says so; the last outcome stays."""

    def __init__(self, outcomes: Iterator[bool]) -> None:
        self.name = "scheduler"
        self.settings = LocalSettings.load({})
        self.spawned: list[FakeChild] = []
        self._outcomes = outcomes

    def spawn(self, runtime_dir: Path) -> FakeChild:
        # Fencing: no process of this spec runs when another starts.
        assert all(child.ended.is_set() for child in self.spawned)
        self.spawned.append(FakeChild(self.name, starts=next(self._outcomes)))
        return self.spawned[-1]


class Place:
    """A keeper under test."""

    def __init__(self, *outcomes: bool) -> None:
        self.spec = spec(*outcomes)
        self.failures: list[StartupError] = []
        self.keeper = Keeper(cast(ChildSpec, self.spec), Path("/nowhere"), 1.0, self.failures.append)

    @property
    def child(self) -> Any:
        return self.keeper.child


def spec(*outcomes: bool) -> FakeSpec:
    def forever() -> Iterator[bool]:
        yield from outcomes
        while True:
            yield outcomes[-1]

    return FakeSpec(forever())


@pytest_asyncio.fixture
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    place = Place(*request.param)
    yield place
    await place.keeper.stop()
    assert all(child.ended.is_set() for child in place.spec.spawned)


async def _until(place: Place, num_spawned: int) -> None:
    async with asyncio.timeout(60):
        while len(place.spec.spawned) < num_spawned or place.child is not place.spec.spawned[-1]:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("place", [(True,)], indirect=True)
async def test_a_dead_process_is_followed_by_another(place: Place):
    await place.keeper.start()
    for count in (1, 2):
        place.child.ended.set()
        await _until(place, count + 1)
        assert place.keeper.restarts == count
    assert place.keeper.last_end == "scheduler died"
    assert not place.failures


@pytest.mark.parametrize("place", [(True,)], indirect=True)
async def test_who_shares_memory_with_a_dead_process_dies_before_the_next_starts(place: Place):
    await place.keeper.start()
    other = FakeChild("executor 0", starts=True)
    place.keeper.dies_first = {cast(Child, other)}
    place.child.ended.set()
    await _until(place, 2)
    assert other.ended.is_set()


@pytest.mark.parametrize("place", [(False,)], indirect=True)
async def test_the_first_start_is_not_repeated(place: Place):
    with pytest.raises(StartupError, match="no luck"):
        await place.keeper.start()
    await asyncio.sleep(0.3)
    assert len(place.spec.spawned) == 1


@pytest.mark.parametrize("place", [(True, False)], indirect=True)
async def test_starts_that_fail_again_and_again_are_told_once(place: Place):
    await place.keeper.start()
    place.child.ended.set()
    async with asyncio.timeout(60):
        while not place.failures:
            await asyncio.sleep(0.01)
    assert len(place.spec.spawned) == 1 + MAX_FAILED_STARTS
    assert [failure.message for failure in place.failures] == [
        f"scheduler failed to start {MAX_FAILED_STARTS} times in a row: scheduler: no luck"
    ]


@pytest.mark.parametrize("place", [(True, False, True)], indirect=True)
async def test_a_renewal_that_fails_is_told_and_tried_again(place: Place):
    await place.keeper.start()
    with pytest.raises(StartupError, match="no luck"):
        await place.keeper.renew()
    await _until(place, 3)
    assert place.child.starts
    assert not place.failures


@pytest.mark.parametrize("place", [(True,)], indirect=True)
async def test_a_replacement_runs_beside_the_old_one_until_it_has_the_work(place: Place):
    await place.keeper.start()
    old, other = place.child, spec(True)

    async def hand_over() -> None:
        assert place.child is old
        assert not old.ended.is_set()

    await place.keeper.replace(cast(ChildSpec, other), hand_over)
    assert old.ended.is_set()
    assert place.child is other.spawned[0]
    # From now on the new specification counts.
    place.child.ended.set()
    async with asyncio.timeout(60):
        while len(other.spawned) < 2:
            await asyncio.sleep(0.01)
    assert len(place.spec.spawned) == 1


@pytest.mark.parametrize("place", [(True,)], indirect=True)
@pytest.mark.parametrize("starts", [True, False])
async def test_a_replacement_that_fails_leaves_the_old_one(place: Place, starts: bool):
    await place.keeper.start()
    old, other = place.child, spec(starts)

    async def refuse() -> None:
        raise StartupError("no luck: refused")

    with pytest.raises(StartupError, match="no luck"):
        await place.keeper.replace(cast(ChildSpec, other), refuse)
    assert other.spawned[0].ended.is_set()
    assert place.keeper.children == [old]
    assert not old.ended.is_set()


@pytest.mark.parametrize("place", [(True,)], indirect=True)
async def test_a_stop_ends_what_runs_beside_too(place: Place):
    await place.keeper.start()
    other = spec(True)
    replacing = asyncio.create_task(place.keeper.replace(cast(ChildSpec, other), asyncio.Event().wait))
    async with asyncio.timeout(60):
        while not other.spawned:
            await asyncio.sleep(0.01)
    replacing.cancel()
    await asyncio.gather(replacing, return_exceptions=True)
    await place.keeper.stop()
    assert other.spawned[0].ended.is_set()


def test_the_fakes_speak_as_children_do():
    names = {name for name in vars(FakeChild) if not name.startswith("_")}
    assert names <= vars(Child).keys()
