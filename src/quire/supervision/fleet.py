"""All processes of a supervisor together: started, watched, upgraded and ended. Belongs to one event loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

from quire.config import LocalSettings
from quire.errors import QuireError, StartupError
from quire.supervision.child import Child, ChildSpec
from quire.supervision.keeper import END_TIMEOUT_S, Keeper
from quire.supervision.on_demand import OnDemandKeeper
from quire.supervision.upgrade import replace_executor
from quire.supervision.watchdog import INTERVAL_S, Watchdog

# To end in order, for a process that has nothing to wait for.
_HURRIED_END_S: Final = 2.0


class Fleet:
    """Executors, a scheduler, gateways if any, and the process that holds device memory if an executor needs it."""

    def __init__(
        self,
        settings: LocalSettings,
        runtime_dir: Path,
        executors: Sequence[ChildSpec],
        scheduler: ChildSpec,
        gateways: Sequence[ChildSpec],
        device_pool: ChildSpec,
        on_failure: Callable[[StartupError], None],
    ) -> None:
        """`device_pool` is started when somebody connects to its `address`, the others at once.

        `on_failure` is called with the reason when a process cannot be had any more.
        """
        drain_s = settings.shutdown_timeout + END_TIMEOUT_S
        self._executors = [Keeper(spec, runtime_dir, END_TIMEOUT_S, on_failure) for spec in executors]
        self._scheduler = Keeper(scheduler, runtime_dir, END_TIMEOUT_S, on_failure)
        self._device_pool = OnDemandKeeper(device_pool, runtime_dir, Path(str(device_pool.own["address"])), on_failure)
        self._gateways = [Keeper(spec, runtime_dir, drain_s, on_failure) for spec in gateways]
        self._watchdog_timeout_s = settings.watchdog_timeout
        self._starts: list[asyncio.Task[None]] = []
        self._watching: asyncio.Task[None] | None = None
        self._upgrade: asyncio.Task[Any] | None = None
        self._is_stopping = False
        self._hurried = False

    @property
    def keepers(self) -> list[Keeper]:
        """One for each place: executors, what holds their memory, the scheduler, gateways."""
        return [*self._executors, self._device_pool, self._scheduler, *self._gateways]

    @property
    def all_children(self) -> list[Child]:
        """Whatever may still run: those that start or end beside others, too."""
        return [child for keeper in self.keepers for child in keeper.children]

    async def start(self, when_spawned: Callable[[], Awaitable[None]]) -> None:
        """Starts all processes at once; calls `when_spawned` as soon as they are there, long before they serve.

        Raises StartupError with the reason of the first that does not serve.
        """
        at_once = [*self._executors, self._scheduler, *self._gateways]
        self._starts = [asyncio.create_task(keeper.start()) for keeper in at_once]
        await asyncio.sleep(0)  # each has spawned its process when it first waits
        await when_spawned()
        await self._device_pool.start()
        await asyncio.gather(*self._starts)
        self._watching = asyncio.create_task(self._watch_progress(), name="watchdog")

    async def stop(self) -> None:
        """Ends the gateways, which drain, then the scheduler, then the executors, then what holds their memory."""
        self._is_stopping = True
        await _cancel([*self._starts, *([self._upgrade] if self._upgrade is not None else [])])
        # While gateways drain, whatever else dies is started again: no stream is cut off.
        for keepers in (self._gateways, [self._scheduler], self._executors, [self._device_pool]):
            longest_s = _HURRIED_END_S if self._hurried else math.inf
            await asyncio.gather(*(keeper.stop(longest_s) for keeper in keepers))
        await _cancel([self._watching] if self._watching is not None else [])

    def hurry(self) -> None:
        """Cuts `stop` short: kills the processes that have been asked to end, and gives the others little time."""
        self._hurried = True
        for child in self.all_children:
            if child.is_leaving:
                child.process.kill()

    async def upgrade(self, kind: str) -> list[str]:
        """Replaces the processes of a kind, one after the other; returns their names.

        Raises QuireError with the reason if one cannot be replaced; unless it is the scheduler, which cannot have
        another beside it, the old one then goes on.
        """
        if self._watching is None or self._is_stopping:
            raise QuireError("the server is starting or stopping")
        if self._upgrade is not None:
            raise QuireError("another upgrade is under way")
        self._upgrade = asyncio.current_task()
        try:
            return await self._upgrade_all(kind)
        finally:
            self._upgrade = None

    def status(self) -> list[dict[str, Any]]:
        """What is known of each process."""
        return [
            {
                "name": child.name,
                "pid": child.process.pid,
                "state": child.state,
                "restarts": keeper.restarts,
                "last_end": keeper.last_end,
            }
            for keeper in self.keepers
            for child in keeper.children
        ]

    async def _upgrade_all(self, kind: str) -> list[str]:
        match kind:
            case "executor":
                keepers = self._executors
                for index in range(len(keepers)):
                    await replace_executor(keepers, index, self._scheduler)
            case "scheduler":
                keepers = [self._scheduler]
                await self._scheduler.renew()
            case "gateway":
                keepers = self._gateways
                for keeper in keepers:
                    await keeper.replace(keeper.spec, _nothing)
            case _:
                raise QuireError(f"there is no kind of process called {kind!r}", field="process")
        return [keeper.spec.name for keeper in keepers]

    async def _watch_progress(self) -> None:
        """Kills processes that stand still; their keepers start others."""
        watchdog: Watchdog[Child] = Watchdog(self._watchdog_timeout_s)
        while True:
            for child in watchdog.look({child: child.beats for child in self.all_children if child.is_watched}):
                child.kill_hung(self._watchdog_timeout_s)
            await asyncio.sleep(INTERVAL_S)


async def _nothing() -> None:
    """A gateway has no work that another could take over: it drains."""


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
