"""Fills a place when somebody asks for it: until then, and after its process has died, nothing runs there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import Callable
from pathlib import Path

from quire.errors import StartupError
from quire.packet_server import listen
from quire.supervision.child import ChildSpec
from quire.supervision.keeper import END_TIMEOUT_S, Keeper

logger = logging.getLogger(__name__)


class OnDemandKeeper(Keeper):
    """Starts a process when somebody connects to its socket, which the process takes over and this keeper keeps.

    So nobody has to know beforehand whether the process is needed, a connection that comes early waits for it, and one
    that comes after its death starts another. Where the process cannot be started, those who wait are turned away.
    """

    def __init__(
        self, spec: ChildSpec, runtime_dir: Path, address: Path, on_failure: Callable[[StartupError], None]
    ) -> None:
        """`spec` has a setting `listener_fd`."""
        super().__init__(spec, runtime_dir, END_TIMEOUT_S, on_failure)
        self._address = address
        self._listener: socket.socket | None = None

    async def start(self) -> None:
        """Makes the socket; its folder is there."""
        self._listener = listen(self._address)
        self.spec = self.spec.with_own(listener_fd=self._listener.fileno()).with_inherited(self._listener.fileno())
        self._keep_watch()

    async def stop(self, longest_s: float = math.inf) -> None:
        """Ends the process, if there is one, for good; nobody can connect any more."""
        await super().stop(longest_s)
        if self._listener is not None:
            self._listener.close()
            self._address.unlink(missing_ok=True)

    async def _fill(self) -> None:
        await self._called()
        if self.child is not None:
            self.restarts += 1
        try:
            await self._start()
            assert self.child is not None
            await self.child.until_ended()
            self.last_end = self.child.describe_end()
        except StartupError as error:
            self.last_end = error.message
            self._turn_away()
        logger.warning("%s", self.last_end)
        await asyncio.sleep(self._backoff.next_delay_s())

    async def _called(self) -> None:
        """Waits until a connection waits."""
        assert self._listener is not None
        loop, called = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._listener, called.set)
        try:
            await called.wait()
        finally:
            loop.remove_reader(self._listener)

    def _turn_away(self) -> None:
        """Closes the connections that wait."""
        assert self._listener is not None
        with contextlib.suppress(BlockingIOError):
            while True:
                self._listener.accept()[0].close()
