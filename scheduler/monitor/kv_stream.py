"""The readers of KV events: each from where it is, at its own speed.

A reader that is too slow for the log begins anew with what the cache holds then.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Final

from quire.scheduler.kv_cache import KvCache
from quire.scheduler.monitor.kv_events import MAX_EVENTS, KvEventLog
from quire.scheduler.monitor.pace import Pace
from quire.v1 import monitor_pb2

# Events of a message. To make them takes less than a millisecond.
_BATCH: Final = 256
# How long events are collected for a reader that may come back, in seconds.
_LINGER_S: Final = 30.0
# Of the scheduler's time, while readers are told what is there already. Slower, and with a large cache the log would
# have forgotten by the end what came meanwhile.
_SNAPSHOT_SHARE: Final = 0.1


class KvEventStreams:
    """Collects events while there are readers."""

    def __init__(self, kv_cache: KvCache, *, max_events: int = MAX_EVENTS, linger_s: float = _LINGER_S) -> None:
        self._cache = kv_cache
        self._max_events = max_events
        self._linger_s = linger_s
        self._log: KvEventLog | None = None
        self._num_readers = 0
        self._pace = Pace(_SNAPSHOT_SHARE)
        self._leaving: asyncio.TimerHandle | None = None

    async def batches(self, source: str, after_id: int) -> AsyncGenerator[monitor_pb2.KvEventBatch, None]:
        """Events for ever: those after one of a source, or from nothing if that cannot be."""
        with self._reading() as log:
            position = after_id if source == log.source else 0
            while True:
                if not log.has_after(position):
                    position = log.last_id
                    async for events in self._paced(log.snapshot()):
                        yield _batch(log, events)
                elif events := log.after(position, _BATCH):
                    position = events[-1].id
                    yield _batch(log, events)
                else:
                    log.changed.clear()
                    # Comes back when the loop has done what it is about: what a step causes makes one batch.
                    await log.changed.wait()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[KvEventLog]:
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
        if self._log is None:
            self._log = self._cache.prefixes.listener = KvEventLog(self._cache, self._max_events)
        self._num_readers += 1
        try:
            yield self._log
        finally:
            self._num_readers -= 1
            if not self._num_readers:
                self._leaving = asyncio.get_running_loop().call_later(self._linger_s, self._stop)

    def _stop(self) -> None:
        """Collects nothing any more."""
        self._log = self._cache.prefixes.listener = self._leaving = None

    async def _paced(self, snapshot: Iterator[monitor_pb2.KvEvent]) -> AsyncGenerator[list[monitor_pb2.KvEvent], None]:
        events = [monitor_pb2.KvEvent()]
        while events:
            if (wait_s := self._pace.wait_s) > 0:
                await asyncio.sleep(wait_s)  # other readers may have had their turn meanwhile
                continue
            with self._pace.measured():
                events = list(itertools.islice(snapshot, _BATCH))
            if events:
                yield events


def _batch(log: KvEventLog, events: list[monitor_pb2.KvEvent]) -> monitor_pb2.KvEventBatch:
    return monitor_pb2.KvEventBatch(source=log.source, time_ns=time.time_ns(), events=events)
