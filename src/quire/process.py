"""What every process of Quire does: name itself, say how it fares, and end with its parent.

A parent learns a child's state from a pipe, one JSON object per line: `{"state": "ready", …}` once, or
`{"state": "failed", "message": …, "field": …}`, and that it is alive from a page of shared memory (progress.py). A
child learns of its parent's death from a pidfd, which works from any thread and cannot be fooled by a reused process
id (PR_SET_PDEATHSIG fires when a *thread* ends).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import shutil
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import setproctitle
import uvloop

from quire.config import ProcessOptions
from quire.errors import QuireError, StartupError
from quire.logs import configure_logging, report_error
from quire.progress import heartbeats
from quire.runtime_dir import await_runtime_dir

logger = logging.getLogger(__name__)

# Objects made and not freed between collections of the youngest; Python's default, 700, is one step of 64 streams.
_GC_THRESHOLD = 20_000

S = TypeVar("S", bound=ProcessOptions)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StatusReporter:
    """The child's end of the status pipe; without a parent it reports to nobody."""

    fd: int | None

    def ready(self, **details: Any) -> None:
        """The process serves. `details` travel to the parent."""
        self._write({"state": "ready", **details})

    def failed(self, error: QuireError) -> None:
        """The process gives up."""
        self._write({"state": "failed", "error": type(error).__name__, "message": error.message, "field": error.field})

    def _write(self, message: dict[str, Any]) -> None:
        if self.fd is not None:
            # A parent that is gone is noticed elsewhere.
            with contextlib.suppress(BrokenPipeError):
                os.write(self.fd, json.dumps(message).encode() + b"\n")


class StopSignal:
    """Set by SIGTERM, SIGINT or the parent's death; wait for it to shut down in good order."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()


async def unless_stopped(work: Coroutine[Any, Any, T], stop: StopSignal) -> T | None:
    """The result of `work`, or None if the stop came first; `work` is then cancelled and has cleaned up."""
    task = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.wait((task,))
        return None
    finally:
        stopped.cancel()
        task.cancel()


async def first_of(*activities: Coroutine[Any, Any, T]) -> T:
    """What the first to end gives, or raises; the others are cancelled. Of several that have ended the first named."""
    tasks = [asyncio.ensure_future(activity) for activity in activities]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task.result() for task in tasks if task.done())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def run_process(
    title: str,
    settings: S,
    main: Callable[[S, StatusReporter, StopSignal], Awaitable[None]],
    *,
    use_uvloop: bool = True,
) -> int:
    """Runs a process's `main` until it returns; returns the exit status.

    uvloop is the faster event loop, but it needs io_uring, which an executor's sandbox takes away; the steps of an
    executor do not pass through its loop.

    `main` serves until its StopSignal is set and then cleans up. A QuireError that escapes it is reported to the
    parent and printed as one line; anything else is a defect and is printed with its traceback.
    """
    setproctitle.setproctitle(f"quire: {title}")
    configure_logging(title, settings.log_level, settings.log_format)
    status = StatusReporter(settings.status_fd)
    if settings.status_fd is not None:
        os.set_inheritable(settings.status_fd, False)
    try:
        if settings.runtime_dir is not None:
            await_runtime_dir(settings.runtime_dir, lambda: _is_child_of(settings.parent_pid))
        run = uvloop.run if use_uvloop else asyncio.run
        # Not imported by the supervisor, which would start its children later.
        from quire.process_links import ProcessLinks
        from quire.rpc import use_links

        use_links(ProcessLinks.of(settings))
        run(_supervised(settings, status, main))
    except QuireError as error:
        status.failed(error)
        if settings.status_fd is None:  # a parent says it itself
            report_error(f"quire {title}", error.message, settings.log_format)
        return 1
    except Exception as error:
        status.failed(StartupError(f"{title} failed: {type(error).__name__}: {error}"))
        logger.exception("%s failed", title)
        return 1
    finally:
        if settings.runtime_dir is not None and not _is_child_of(settings.parent_pid):
            # The parent would have done it; its other children are ending too.
            shutil.rmtree(settings.runtime_dir, ignore_errors=True)
    return 0


async def _supervised(
    settings: S, status: StatusReporter, main: Callable[[S, StatusReporter, StopSignal], Awaitable[None]]
) -> None:
    """Runs `main` with a StopSignal that follows SIGTERM, SIGINT and the parent."""
    loop = asyncio.get_running_loop()
    stop = StopSignal()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with _parent_watch(settings.parent_pid, stop.set), heartbeats(settings.progress_fd):
        await main(settings, status, stop)


def _is_child_of(parent_pid: int | None) -> bool:
    """Whether the parent still lives: a child whose parent has died is given another one."""
    return parent_pid is None or os.getppid() == parent_pid


@contextlib.contextmanager
def _parent_watch(parent_pid: int | None, on_death: Callable[[], None]) -> Iterator[None]:
    """Calls `on_death` once when the parent has ended. Raises StartupError if it has already."""
    if parent_pid is None:
        yield
        return
    loop = asyncio.get_running_loop()
    try:
        pidfd = os.pidfd_open(parent_pid)
    except ProcessLookupError:
        pidfd = -1
    # The id may name another process by now.
    if pidfd < 0 or not _is_child_of(parent_pid):
        raise StartupError(f"the parent process {parent_pid} has already ended")

    def parent_ended() -> None:
        loop.remove_reader(pidfd)
        logger.warning("the parent process ended; shutting down")
        on_death()

    loop.add_reader(pidfd, parent_ended)
    try:
        yield
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def settle_garbage_collection() -> None:
    """Takes what the start has made (200,000 objects) out of all later collections, makes these rarer and begins them.

    What a request or a step makes is freed by its reference counts; a full collection would only pause every stream.
    Until now there were none: imports make next to no garbage, and collections cost a tenth of their time.
    """
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
    gc.enable()


def in_daemon_thread(function: Callable[[], T]) -> asyncio.Future[T]:
    """Runs `function` in a thread that, unlike the event loop's own, the end of the process does not wait for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        outcome: tuple[T | None, Exception | None]
        try:
            outcome = function(), None
        except Exception as error:
            outcome = None, error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(deliver, *outcome)

    threading.Thread(target=work, daemon=True).start()
    return future
