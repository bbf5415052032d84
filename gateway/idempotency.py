"""A repeated request id joins the run that it began, so that a client may retry without generating twice."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from quire.errors import DuplicateRequestError, QuireError
from quire.gateway.generation import Generation
from quire.internal.v1 import scheduler_pb2
from quire.outputs import CompletionDelta, GenerationDelta, merge_deltas

logger = logging.getLogger(__name__)

AbortReason: TypeAlias = "scheduler_pb2.AbortReason.ValueType"


@dataclass(slots=True)
class _Run:
    """One generation, all it has given so far, and how many calls follow it."""

    content: bytes
    log: list[GenerationDelta] = field(default_factory=list)
    num_followers: int = 0
    task: asyncio.Task[None] | None = None
    error: Exception | None = None
    # Monotonic seconds; None while it runs.
    finished_at: float | None = None
    abort_reason: AbortReason = scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait_changed(self) -> None:
        await self._changed.wait()

    def notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


async def run_once(
    start: Callable[[], Awaitable[Generation]], leaving: Callable[[], AbortReason]
) -> AsyncGenerator[GenerationDelta, None]:
    """All deltas of a run that nobody can join; whoever leaves early must close the iterator, which aborts it."""
    with _defects_hidden():
        generation = await start()
        try:
            async for delta in generation:
                yield delta
        finally:
            generation.close(leaving())


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
    """Runs by request id. A finished one is remembered for a while; one that failed can be tried again at once.

    What is remembered is bounded by `capacity` runs, each of as many contexts as it has continuations; runs that are
    too old are forgotten when the next call comes.
    """

    def __init__(self, *, capacity: int = 256, keep_s: float = 60.0) -> None:
        self._capacity = capacity
        self._keep_s = keep_s
        self._running: dict[str, _Run] = {}
        self._finished: OrderedDict[str, _Run] = OrderedDict()

    async def follow(
        self,
        request_id: str,
        content: bytes,
        start: Callable[[], Awaitable[Generation]],
        leaving: Callable[[], AbortReason],
    ) -> AsyncGenerator[GenerationDelta, None]:
        """All deltas of the run with this id, from its first; `start` begins it if there is none.

        `content` is what the id stands for: DuplicateRequestError if the run has another. Whoever leaves must
        close the iterator; the last to leave a run aborts it, for the reason that `leaving` gives.
        """
        run = self._find(request_id)
        if run is None:
            run = self._running[request_id] = _Run(content)
            run.task = asyncio.create_task(self._drive(request_id, run, start))
        elif run.content != content:
            message = f"the request id {request_id!r} is in use by a different request"
            raise DuplicateRequestError(message, field="request_id")
        run.num_followers += 1
        log = run.log
        position = 0
        try:
            while True:
                while position < len(log):
                    yield log[position]
                    position += 1
                if run.error is not None:
                    raise run.error
                if run.finished_at is not None:
                    return
                await run.wait_changed()
        finally:
            run.num_followers -= 1
            if run.num_followers == 0:
                self._abandon(request_id, run, leaving)

    def _find(self, request_id: str) -> _Run | None:
        self._forget_old()
        return self._running.get(request_id) or self._finished.get(request_id)

    def _abandon(self, request_id: str, run: _Run, leaving: Callable[[], AbortReason]) -> None:
        """Aborts a run that nobody follows; a later call with its id starts anew."""
        if run.finished_at is None and run.error is None and run.task is not None:
            run.abort_reason = leaving()
            run.task.cancel()
            self._drop(request_id, run)

    async def _drive(self, request_id: str, run: _Run, start: Callable[[], Awaitable[Generation]]) -> None:
        try:
            with _defects_hidden():
                generation = await start()
                try:
                    async for delta in generation:
                        run.log.append(delta)
                        run.notify()
                finally:
                    generation.close(run.abort_reason)
        except QuireError as error:
            run.error = error
        else:
            run.finished_at = time.monotonic()
            # Those who follow keep the log that they are reading.
            run.log = _compacted(run.log)
            self._finished[request_id] = run
        finally:
            self._drop(request_id, run)
            run.notify()

    def _drop(self, request_id: str, run: _Run) -> None:
        if self._running.get(request_id) is run:
            del self._running[request_id]

    def _forget_old(self) -> None:
        horizon = time.monotonic() - self._keep_s
        while self._finished:
            oldest = next(iter(self._finished.values()))
            expired = oldest.finished_at is not None and oldest.finished_at < horizon
            if not expired and len(self._finished) <= self._capacity:
                break
            self._finished.popitem(last=False)


def _compacted(log: list[GenerationDelta]) -> list[GenerationDelta]:
    """The same run in one delta."""
    parts: dict[int, list[CompletionDelta]] = {}
    for delta in log:
        for part in delta.deltas:
            parts.setdefault(part.index, []).append(part)
    if not log:
        return log
    merged = [merge_deltas(part) for part in parts.values()]
    return [GenerationDelta(merged, log[-1].usage, log[0].prompt_logprobs)]
