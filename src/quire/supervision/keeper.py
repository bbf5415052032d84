"""Keeps one place filled: an executor's, the scheduler's or a gateway's."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from quire.errors import StartupError
from quire.supervision.backoff import MAX_FAILED_STARTS, Backoff
from quire.supervision.child import Child, ChildSpec

logger = logging.getLogger(__name__)

# How long a process may take to let go of its peers and its memory, after it has done what it was to finish.
END_TIMEOUT_S: Final = 10.0


class Keeper:
    """Starts a process, starts another when it dies, and replaces it when asked.

    Fencing: the next process of a place is started when the one before it is dead and reaped, unless it is meant to
    run beside it (`replace`).
    """

    def __init__(
        self, spec: ChildSpec, runtime_dir: Path, end_timeout_s: float, on_failure: Callable[[StartupError], None]
    ) -> None:
        """`on_failure` is called once, with the reason, if the place cannot be filled any more."""
        self.spec = spec
        self.child: Child | None = None
        self.restarts = 0
        self.last_end: str | None = None
        self._runtime_dir = runtime_dir
        self._end_timeout_s = end_timeout_s
        self._on_failure = on_failure
        self._backoff = Backoff()
        # Processes that must be dead before another one has the place: they share memory with the one that had it.
        self.dies_first: set[Child] = set()
        # Processes that start or end beside the one that has the place.
        self._beside: set[Child] = set()
        self._watch: asyncio.Task[None] | None = None

    @property
    def children(self) -> list[Child]:
        """All processes that may still run."""
        return [*([self.child] if self.child is not None else []), *self._beside]

    async def start(self) -> None:
        """The first start. Raises StartupError with the reason if there is no process that serves."""
        await self._start()
        self._keep_watch()

    async def renew(self) -> None:
        """Ends the process in order and starts another. Raises StartupError if that fails; more starts follow then."""
        await self._stop_watch()
        try:
            if self.child is not None:
                await self.child.end(self._end_timeout_s)
            await self._start()
        finally:
            self._keep_watch()

    async def replace(self, spec: ChildSpec, hand_over: Callable[[], Awaitable[None]]) -> None:
        """Starts a process of `spec` beside the one that serves, has `hand_over` move the work, and ends the old one.

        If the new one does not start, or the work cannot be moved, the old one goes on: raises StartupError, or what
        `hand_over` raises.
        """
        new = spec.spawn(self._runtime_dir)
        self._beside.add(new)
        try:
            await new.until_ready(spec.settings.startup_timeout)
            await hand_over()
        except Exception:
            await self._end_beside(new)
            raise
        await self._stop_watch()
        self._beside.discard(new)
        old, self.child, self.spec = self.child, new, spec
        self._backoff.ready()
        self._keep_watch()
        if old is not None:
            self._beside.add(old)
            await self._end_beside(old)

    async def stop(self, longest_s: float = math.inf) -> None:
        """Ends whatever runs here, for good; kills what takes longer than usual, or than `longest_s`."""
        await self._stop_watch()
        timeout_s = min(self._end_timeout_s, longest_s)
        await asyncio.gather(*(child.end(timeout_s) for child in self.children))

    def _keep_watch(self) -> None:
        self._watch = asyncio.create_task(self._keep_filled(), name=f"keeper of {self.spec.name}")

    async def _stop_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def _keep_filled(self) -> None:
        try:
            while True:
                await self._fill()
        except StartupError as error:
            self._on_failure(error)
        except Exception as error:  # a defect of ours: nobody may wait for the process for ever
            logger.exception("%s is not kept alive any more", self.spec.name)
            self._on_failure(StartupError(f"{self.spec.name} is not kept alive any more: {error}"))

    async def _fill(self) -> None:
        """Waits for the end of the process and starts another. Raises StartupError if that fails too often."""
        if self.child is not None:
            await self.child.until_ended()
            self.last_end = self.child.describe_end()
        await self._restart()

    async def _restart(self) -> None:
        """Starts the process until it serves. Raises StartupError when that has failed too often."""
        while True:
            delay_s = self._backoff.next_delay_s()
            when = f" in {delay_s:g} s" if delay_s else ""
            logger.warning("%s; starting it again%s", self.last_end, when)
            await asyncio.sleep(delay_s)
            self.restarts += 1
            try:
                await self._start()
            except StartupError as error:
                self.last_end = error.message
                if self._backoff.is_exhausted:
                    message = f"{self.spec.name} failed to start {MAX_FAILED_STARTS} times in a row: {error.message}"
                    raise StartupError(message, field=error.field) from error
            else:
                logger.warning("%s serves again", self.spec.name)
                return

    async def _start(self) -> None:
        """One start. Raises StartupError if it fails; the process has ended then."""
        if self.child is not None:
            # Fencing, even where a process cannot be killed for a while.
            await self.child.until_ended()
        for other in self.dies_first:
            await other.end(0)
            await other.until_ended()
        try:
            self.child = self.spec.spawn(self._runtime_dir)
            await self.child.until_ready(self.spec.settings.startup_timeout)
        except StartupError:
            self._backoff.start_failed()
            if self.child is not None:
                await self.child.end(self._end_timeout_s)
            raise
        self._backoff.ready()

    async def _end_beside(self, child: Child) -> None:
        await child.end(self._end_timeout_s)
        self._beside.discard(child)
