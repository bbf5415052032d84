"""When an executor counts as hung, on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from quire.errors import ServiceUnavailableError
from quire.scheduler.watchdog import Watchdog

TIMEOUT_S = 20.0


class PlayedOutError(Exception):
    """The executor of the test has nothing more to show."""


async def _hung_after(progress: Iterator[int], is_busy: Iterator[bool]) -> float:
    """Seconds of the watchdog's own time until it gives up on an executor. Raises PlayedOutError if it never does."""
    now = 0.0

    async def sleep(duration: float) -> None:
        nonlocal now
        now += duration

    async def next_progress() -> int:
        try:
            return next(progress)
        except StopIteration:
            raise PlayedOutError from None

    with pytest.raises(ServiceUnavailableError, match="got nowhere with a step for 20 seconds"):
        await Watchdog(TIMEOUT_S, sleep).watch(lambda: next(is_busy, False), next_progress)
    return now


async def test_one_that_stands_still():
    assert await _hung_after(iter([7] * 100), iter([True] * 100)) == pytest.approx(TIMEOUT_S)


async def test_a_step_that_is_long_and_moves():
    """Once in 19 checks is enough."""
    with pytest.raises(PlayedOutError):
        await _hung_after(iter([check // 19 for check in range(1000)]), iter([True] * 1000))


async def test_one_that_has_nothing_to_do():
    with pytest.raises(PlayedOutError):
        await _hung_after(iter([7] * 1000), iter([False] * 1000))


async def test_time_before_the_step_does_not_count():
    idle = 50
    taken = await _hung_after(iter([7] * 1000), iter([False] * idle + [True] * 1000))
    assert taken == pytest.approx(idle * TIMEOUT_S / 20 + TIMEOUT_S)


async def test_time_in_which_we_did_not_run_does_not_count():
    """A check that comes an hour late is one check: the executor may have been stopped with us."""
    checks = iter([7] * 12 + [8] + [8] * 100)
    assert await _hung_after(checks, iter([True] * 1000)) == pytest.approx(12 * TIMEOUT_S / 20 + TIMEOUT_S)
