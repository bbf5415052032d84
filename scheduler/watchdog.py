"""Notices an executor that hangs: it has a step and its counters stand still.

A long step moves them once per layer, so no step is too long. Time is counted in checks that found nothing new, and
not by a clock: when this process did not run itself (stopped, or on a host that swaps), fewer checks were made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Never

from quire.errors import ServiceUnavailableError

# Between two signs of life, from which the length of a check follows.
_NUM_CHECKS: Final = 20


class HungExecutorError(ServiceUnavailableError):
    """An executor got nowhere for too long."""


class Watchdog:
    """Watches one lane."""

    def __init__(self, timeout_s: float, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._timeout_s = timeout_s
        self._sleep = sleep

    async def watch(self, is_busy: Callable[[], bool], progress: Callable[[], Awaitable[int]]) -> Never:
        """Runs until it is cancelled.

        Raises HungExecutorError once the executor, while it was busy, got nowhere in all checks of a timeout.
        """
        num_idle, known = 0, await progress()
        while num_idle < _NUM_CHECKS:
            await self._sleep(self._timeout_s / _NUM_CHECKS)
            now = await progress()
            num_idle = num_idle + 1 if is_busy() and now == known else 0
            known = now
        raise HungExecutorError(f"it got nowhere with a step for {self._timeout_s:g} seconds")
