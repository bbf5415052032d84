"""What happens to the prefix cache, numbered, for as long as somebody listens.

A block is announced when the step that fills it is acknowledged, not when it is planned: only then does its content
exist, and a step that is lost takes nothing back that was told. A parent is announced before its children, also where
it is computed by another executor whose step ends later.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from typing import Final

from quire.scheduler.block_pool import CachedPrefix
from quire.scheduler.kv_cache import KvCache
from quire.v1 import monitor_pb2

# Events that are kept for readers that lag or come back.
MAX_EVENTS: Final = 65_536


class KvEventLog:
    """Listens to a prefix cache from now on; see `PrefixListener`."""

    def __init__(self, kv_cache: KvCache, max_events: int = MAX_EVENTS) -> None:
        self._cache = kv_cache
        self._max_events = max_events
        # Names this log: ids of another one mean something else.
        self.source = secrets.token_hex(8)
        # 0 is no event's id. The first stands for what was there at the beginning.
        self.last_id = 1
        # Set by each event.
        self.changed = asyncio.Event()
        # By id, without gaps.
        self._events: dict[int, monitor_pb2.KvEvent] = {}
        # Contents that are not announced yet, and the same by the lane and the step that they wait for.
        self._pending: set[CachedPrefix] = set()
        self._by_step: list[dict[int, list[CachedPrefix]]] = [{} for _ in kv_cache.lanes]
        acknowledged = [lane.acknowledged_step for lane in kv_cache.lanes]
        contents = kv_cache.prefixes.contents()
        if len(acknowledged) == 1:  # what is there cannot wait for what is not
            contents = [prefix for prefix in contents if prefix.step > acknowledged[0]]
        for prefix in contents:
            if (awaited := self._awaited(prefix)) is not None:
                self._await(prefix, awaited)

    # As PrefixListener

    def add(self, prefix: CachedPrefix) -> None:
        """See PrefixListener."""
        self._announce(prefix)

    def forget(self, prefix: CachedPrefix) -> None:
        """See PrefixListener."""
        if prefix in self._pending:
            self._pending.discard(prefix)
        else:
            self._append(monitor_pb2.KvEvent(removed=monitor_pb2.BlockRemoved(block_hash=prefix.hash)))

    def acknowledge(self, lane: int, step: int) -> None:
        """See PrefixListener."""
        waiting = self._by_step[lane]
        for done in sorted(planned for planned in waiting if planned <= step):
            for prefix in waiting.pop(done):
                if prefix in self._pending:  # else it was forgotten meanwhile
                    self._announce(prefix)

    def clear(self) -> None:
        """See PrefixListener."""
        self._pending.clear()
        for waiting in self._by_step:
            waiting.clear()
        self._append(cleared())

    # For readers

    def has_after(self, event_id: int) -> bool:
        """Whether all events after one are still there."""
        return self.last_id - len(self._events) <= event_id <= self.last_id

    def after(self, event_id: int, most: int) -> list[monitor_pb2.KvEvent]:
        """The events that follow one, oldest first. Ask `has_after` before."""
        return [self._events[i] for i in range(event_id + 1, min(event_id + most, self.last_id) + 1)]

    def snapshot(self) -> Iterator[monitor_pb2.KvEvent]:
        """Events that lead from nothing to what is announced now (whatever happens later), parents first.

        They have no id but the last, which has that of the latest event.
        """
        known = {prefix.hash: prefix for prefix in self._cache.prefixes.contents() if prefix not in self._pending}
        return _with_last_id(self._from_nothing(known), self.last_id)

    def _from_nothing(self, known: dict[bytes, CachedPrefix]) -> Iterator[monitor_pb2.KvEvent]:
        yield cleared()
        while known:
            _, prefix = known.popitem()
            chain = [prefix]
            while prefix.parent is not None and (parent := known.pop(prefix.parent.hash, None)) is not None:
                chain.append(prefix := parent)
            yield from map(self._stored, reversed(chain))

    def _announce(self, prefix: CachedPrefix) -> None:
        """Tells of a content, unless it or one before it is still to be computed."""
        if (awaited := self._awaited(prefix)) is not None:
            self._await(prefix, awaited)
        else:
            self._pending.discard(prefix)
            self._append(self._stored(prefix))

    def _awaited(self, prefix: CachedPrefix) -> CachedPrefix | None:
        """Whose step has to end before a content is announced: its own or, of those before it, the first's."""
        while prefix.parent is not None and prefix.parent in self._pending:
            prefix = prefix.parent
        return prefix if prefix.step > self._cache.lanes[prefix.lane].acknowledged_step else None

    def _await(self, prefix: CachedPrefix, awaited: CachedPrefix) -> None:
        self._pending.add(prefix)
        self._by_step[awaited.lane].setdefault(awaited.step, []).append(prefix)

    def _stored(self, prefix: CachedPrefix) -> monitor_pb2.KvEvent:
        return monitor_pb2.KvEvent(
            stored=monitor_pb2.BlockStored(
                block_hash=prefix.hash,
                parent_hash=prefix.parent.hash if prefix.parent else b"",
                num_tokens=self._cache.block_size,
                is_salted=bool(prefix.extra_key),
            )
        )

    def _append(self, event: monitor_pb2.KvEvent) -> None:
        self.last_id += 1
        event.id = self.last_id
        self._events[event.id] = event
        self.changed.set()
        if len(self._events) > self._max_events:
            del self._events[self.last_id - self._max_events]


def cleared() -> monitor_pb2.KvEvent:
    """The event that begins anew."""
    return monitor_pb2.KvEvent(cleared=monitor_pb2.CacheCleared())


def _with_last_id(events: Iterator[monitor_pb2.KvEvent], event_id: int) -> Iterator[monitor_pb2.KvEvent]:
    """The same events (at least one), the last with an id."""
    latest = next(events)
    for event in events:
        yield latest
        latest = event
    latest.id = event_id
    yield latest
