"""A repeated request id joins the run that it began, so that a client may retry without generating twice.

Ids are a tenant's own: nobody can join, or learn of, another tenant's run.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from quire.errors import DuplicateRequestError, QuireError
from quire.gateway.grpc_api.responses import merge_responses
from quire.gateway.grpc_api.runs import AbortReason, ResponseRun
from quire.internal.v1 import scheduler_pb2
from quire.v1 import generate_pb2

logger = logging.getLogger(__name__)

Start = Callable[[], Awaitable[ResponseRun]]
# (tenant, request id)
RunKey = tuple[str, str]
Responses = AsyncGenerator[generate_pb2.GenerateResponse, None]

# A log that has grown by so many responses is merged: a token costs a few bytes then, not a message.
_MERGE_AFTER: Final = 256


@dataclass(slots=True, eq=False)
class _Follower:
    """A call that reads a run's log."""

    # Responses of the log that it has taken.
    position: int = 0


@dataclass(slots=True)
class _Run:
    """One generation, all it has given so far, and the calls that follow it."""

    content: bytes
    log: list[generate_pb2.GenerateResponse] = field(default_factory=list)
    followers: list[_Follower] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    error: Exception | None = None
    # Monotonic seconds; None while it runs.
    finished_at: float | None = None
    abort_reason: AbortReason = scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED
    _merge_at: int = _MERGE_AFTER
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait_changed(self) -> None:
        await self._changed.wait()

    def notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def append(self, response: generate_pb2.GenerateResponse) -> None:
        """Adds to the log, and waits until a follower has taken it: the fastest sets the pace."""
        self.log.append(response)
        self.notify()
        while self.followers and all(follower.position < len(self.log) for follower in self.followers):
            await self.wait_changed()
        if len(self.log) >= self._merge_at:
            self._merge()

    def _merge(self) -> None:
        """Makes one response of those between which no follower stands."""
        cuts = sorted({0, len(self.log), *(follower.position for follower in self.followers)})
        places = {cut: place for place, cut in enumerate(cuts)}
        self.log[:] = [merge_responses(self.log[a:b]) for a, b in itertools.pairwise(cuts)]
        for follower in self.followers:
            follower.position = places[follower.position]
        self._merge_at = len(self.log) + _MERGE_AFTER

    def finish(self) -> None:
        """It has given all. Those who follow keep the log that they are reading."""
        self.finished_at = time.monotonic()
        self.log = [merge_responses(self.log)] if self.log else []

    @property
    def num_bytes(self) -> int:
        return sum(response.ByteSize() for response in self.log)


async def run_once(start: Start, leaving: Callable[[], AbortReason]) -> Responses:
    """All responses of a run that nobody can join; whoever leaves early must close the iterator, which aborts it."""
    with _defects_hidden():
        run = await start()
        try:
            async with contextlib.aclosing(run.responses()) as responses:
                async for response in responses:
                    yield response
        finally:
            run.close(leaving())


@contextlib.contextmanager
def _defects_hidden() -> Iterator[None]:
    """Logs what is not a QuireError, and raises one that says nothing of it."""
    try:
        yield
    except QuireError:
        raise
    except Exception as error:
        logger.exception("a request failed")
        raise QuireError("internal error") from error


class RunRegistry:
    """Runs by tenant and request id. A finished one is remembered for a while; one that failed can be tried again.

    A run's log holds what it has given, in a few bytes per token (logprobs as they are), and the run waits for the
    fastest of its readers: the log of a request that nobody reads does not grow. Finished runs are bounded by
    `capacity` and, together, by `max_bytes`; what is too old or too much is forgotten when the next call comes.
    """

    def __init__(self, *, capacity: int = 256, max_bytes: int = 64 << 20, keep_s: float = 60.0) -> None:
        self._capacity = capacity
        self._max_bytes = max_bytes
        self._keep_s = keep_s
        self._running: dict[RunKey, _Run] = {}
        self._finished: OrderedDict[RunKey, _Run] = OrderedDict()
        self._finished_bytes = 0

    async def follow(
        self, tenant: str, request_id: str, content: bytes, start: Start, leaving: Callable[[], AbortReason]
    ) -> Responses:
        """All responses of the run with this id, from its first; `start` begins it if there is none.

        `content` is what the id stands for: DuplicateRequestError if the run has another. Whoever leaves must
        close the iterator; the last to leave a run aborts it, for the reason that `leaving` gives.
        """
        key = (tenant, request_id)
        run = self._find(key)
        if run is None:
            run = self._running[key] = _Run(content)
            run.task = asyncio.create_task(self._drive(key, run, start))
        elif run.content != content:
            message = f"the request id {request_id!r} is in use by a different request"
            raise DuplicateRequestError(message, field="request_id")
        follower = _Follower()
        run.followers.append(follower)
        log = run.log
        try:
            while True:
                while follower.position < len(log):
                    response = log[follower.position]
                    follower.position += 1
                    if follower.position == len(log):
                        run.notify()
                    yield response
                if run.error is not None:
                    raise run.error
                if run.finished_at is not None:
                    return
                await run.wait_changed()
        finally:
            run.followers.remove(follower)
            if run.followers:
                run.notify()
            else:
                self._abandon(key, run, leaving)

    def _find(self, key: RunKey) -> _Run | None:
        self._forget_old()
        return self._running.get(key) or self._finished.get(key)

    def _abandon(self, key: RunKey, run: _Run, leaving: Callable[[], AbortReason]) -> None:
        """Aborts a run that nobody follows; a later call with its id starts anew."""
        if run.finished_at is None and run.error is None and run.task is not None:
            run.abort_reason = leaving()
            run.task.cancel()
            self._drop(key, run)

    async def _drive(self, key: RunKey, run: _Run, start: Start) -> None:
        try:
            with _defects_hidden():
                source = await start()
                try:
                    async with contextlib.aclosing(source.responses()) as responses:
                        async for response in responses:
                            await run.append(response)
                finally:
                    source.close(run.abort_reason)
        except QuireError as error:
            run.error = error
        else:
            run.finish()
            self._finished[key] = run
            self._finished_bytes += run.num_bytes
        finally:
            self._drop(key, run)
            run.notify()

    def _drop(self, key: RunKey, run: _Run) -> None:
        if self._running.get(key) is run:
            del self._running[key]

    def _forget_old(self) -> None:
        horizon = time.monotonic() - self._keep_s
        while self._finished:
            oldest = next(iter(self._finished.values()))
            expired = oldest.finished_at is not None and oldest.finished_at < horizon
            too_many = len(self._finished) > self._capacity or self._finished_bytes > self._max_bytes
            if not expired and not too_many:
                break
            _, forgotten = self._finished.popitem(last=False)
            self._finished_bytes -= forgotten.num_bytes
