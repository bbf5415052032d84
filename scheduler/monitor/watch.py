"""States of the scheduler, again and again, for all who watch: made once for those who are due at a time.

Onlookers cost the scheduler a bounded share of its time, all together: see `Pace`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Final

from quire.scheduler.monitor.block_map import BlockStates
from quire.scheduler.monitor.pace import Pace
from quire.scheduler.monitor.state import StateMaker
from quire.v1 import monitor_pb2

# What gRPC takes to send a message, in seconds, beside what is measured here.
_SEND_S: Final = 0.0002


class Watch:
    """Those who want the same kind of states: with or without blocks."""

    def __init__(self, maker: StateMaker, pace: Pace, blocks: BlockStates | None) -> None:
        """With `blocks` states have block tables and the map."""
        self._maker = maker
        self._pace = pace
        self._blocks = blocks
        self._num_watchers = 0
        # The latest state without the map, when it was made, and which it is.
        self._latest = monitor_pb2.ServerState()
        self._made_s = -math.inf
        self._number = 0
        # The messages of the latest state, by the version of the map that their readers have.
        self._messages: dict[int | None, monitor_pb2.ServerState] = {}

    async def states(self, interval_s: float) -> AsyncGenerator[monitor_pb2.ServerState, None]:
        """A state now, and one each `interval_s` or less often."""
        with self._watching():
            number, version = 0, None
            while True:
                due = time.perf_counter() + interval_s
                await self._renew(number, interval_s / 2)
                number = self._number
                message = self._message(version)
                version = None if self._blocks is None else self._blocks.version
                self._pace.spend(_SEND_S)
                yield message
                await asyncio.sleep(max(due - time.perf_counter(), 0))

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        if self._blocks is not None and not self._num_watchers:
            self._blocks.open()
        self._num_watchers += 1
        try:
            yield
        finally:
            self._num_watchers -= 1
            if not self._num_watchers:
                self._messages.clear()
                self._latest, self._made_s = monitor_pb2.ServerState(), -math.inf
                if self._blocks is not None:
                    self._blocks.close()
                    self._maker.forget()

    async def _renew(self, known: int, max_age_s: float) -> None:
        """Makes a state, unless one that is young enough has come after the one that is known."""
        while self._number <= known or time.perf_counter() - self._made_s > max_age_s:
            if (wait_s := self._pace.wait_s) > 0:
                await asyncio.sleep(wait_s)  # another onlooker's state may be there then
                continue
            with self._pace.measured():
                if self._blocks is not None and not self._blocks.is_complete:
                    self._blocks.read_part()
                else:
                    self._make()
                    return

    def _make(self) -> None:
        if self._blocks is not None:
            self._blocks.update()
        self._latest = self._maker.state(with_tables=self._blocks is not None)
        self._made_s = time.perf_counter()
        self._number += 1
        self._messages.clear()

    def _message(self, version: int | None) -> monitor_pb2.ServerState:
        """The latest state, with what has changed of the map since a version."""
        if self._blocks is None:
            return self._latest
        if version not in self._messages:
            with self._pace.measured():
                message = self._messages[version] = monitor_pb2.ServerState(blocks=self._blocks.since(version))
                message.MergeFrom(self._latest)
        return self._messages[version]
