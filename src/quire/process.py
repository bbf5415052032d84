"""What every process of Quire does: name itself, say how it fares, and end with its parent.

A parent learns a child's state from a pipe, one JSON object per line: `{"state": "ready", …}` once, or
`{"state": "failed", "message": …, "field": …}`. A child learns of its parent's death from a pidfd, which works
from any thread and cannot be fooled by a reused process id (PR_SET_PDEATHSIG fires when a *thread* ends).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import setproctitle
import uvloop

from quire.config import ListenOptions, ProcessOptions
from quire.errors import QuireError, StartupError

logger = logging.getLogger(__name__)

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


def run_process(title: str, settings: S, main: Callable[[S, StatusReporter, StopSignal], Awaitable[None]]) -> int:
    """Runs a process's `main` on uvloop until it returns; returns the exit status.

    `main` serves until its StopSignal is set and then cleans up. A QuireError that escapes it is reported to the
    parent and printed as one line; anything else is a defect and is printed with its traceback.
    """
    setproctitle.setproctitle(f"quire: {title}")
    logging.basicConfig(level=settings.log_level.upper(), format=f"%(asctime)s %(levelname)s {title}: %(message)s")
    # What libraries say at INFO is not for the operator.
    for noisy in ("httpx", "huggingface_hub", "transformers", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    status = StatusReporter(settings.status_fd)
    if settings.status_fd is not None:
        os.set_inheritable(settings.status_fd, False)
    try:
        uvloop.run(_supervised(settings, status, main))
    except QuireError as error:
        status.failed(error)
        if settings.status_fd is None:  # a parent says it itself
            print(f"quire {title}: error: {error.message}", file=sys.stderr)  # noqa: T201
        return 1
    except Exception as error:
        status.failed(StartupError(f"{title} failed: {type(error).__name__}: {error}"))
        logger.exception("%s failed", title)
        return 1
    return 0


async def _supervised(
    settings: S, status: StatusReporter, main: Callable[[S, StatusReporter, StopSignal], Awaitable[None]]
) -> None:
    """Runs `main`; a stop before it is ready cancels it, a later one lets it shut down."""
    loop = asyncio.get_running_loop()
    stop = StopSignal()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with _parent_watch(settings.parent_pid, stop.set) as orphaned:
        await main(settings, status, stop)
    if orphaned.is_set() and isinstance(settings, ListenOptions):
        _remove_runtime_dir(settings.listen)


@contextlib.contextmanager
def _parent_watch(parent_pid: int | None, on_death: Callable[[], None]) -> Iterator[asyncio.Event]:
    """Calls `on_death` and sets the event once when the parent has ended."""
    orphaned = asyncio.Event()
    if parent_pid is None:
        yield orphaned
        return
    loop = asyncio.get_running_loop()
    try:
        pidfd = os.pidfd_open(parent_pid)
    except ProcessLookupError:
        pidfd = -1
    # Between the fork and here the parent may have died and its id may name another process.
    if pidfd < 0 or os.getppid() != parent_pid:
        raise StartupError(f"the parent process {parent_pid} has already ended")

    def parent_ended() -> None:
        loop.remove_reader(pidfd)
        logger.warning("the parent process ended; shutting down")
        orphaned.set()
        on_death()

    loop.add_reader(pidfd, parent_ended)
    try:
        yield orphaned
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def _remove_runtime_dir(address: str) -> None:
    """Does what the parent would have done with the folder of our sockets; the last process succeeds."""
    socket = Path(address.removeprefix("unix:"))
    with contextlib.suppress(OSError):
        socket.unlink(missing_ok=True)
        socket.parent.rmdir()
