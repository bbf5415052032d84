"""One process of ours, from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self

import quire.errors
from quire.config import LocalSettings, ProcessOptions
from quire.errors import StartupError
from quire.progress import ProgressPage
from quire.settings import flags, secret_variables

logger = logging.getLogger(__name__)

# How long a process that was killed may take to be gone; longer only in a kernel that is in trouble.
_REAP_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How to start a process."""

    name: str
    command: str
    options: type[ProcessOptions]
    # Of the server: the process gets its share of them.
    settings: LocalSettings
    own: Mapping[str, object]
    # Descriptors that it inherits, under the same numbers.
    inherited: tuple[int, ...] = ()

    def with_inherited(self, *descriptors: int) -> Self:
        """The same with these descriptors."""
        return replace(self, inherited=descriptors)

    def with_own(self, **changed: object) -> Self:
        """The same with other settings of its own."""
        return replace(self, own={**self.own, **changed})

    def remove_socket(self) -> None:
        """Removes what a process that is dead, or may not change files, has left of its address."""
        listen = str(self.own.get("listen", ""))
        if listen.startswith("unix:"):
            Path(listen.removeprefix("unix:")).unlink(missing_ok=True)

    def spawn(self, runtime_dir: Path) -> Child:
        """Starts the process. Raises StartupError if the system has no room for one more."""
        self.remove_socket()
        try:
            with contextlib.ExitStack() as on_failure:
                child = self._spawn(runtime_dir, on_failure)
                on_failure.pop_all()
                return child
        except OSError as error:
            raise StartupError(f"{self.name} cannot be started: {error}") from error

    def _spawn(self, runtime_dir: Path, on_failure: contextlib.ExitStack) -> Child:
        status, child_status = os.pipe()
        on_failure.callback(os.close, status)
        try:
            progress = on_failure.enter_context(contextlib.closing(ProgressPage.create()))
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "quire", self.command, *self._flags(runtime_dir, child_status, progress)],
                stdin=subprocess.DEVNULL,
                env=self._environment(runtime_dir),
                pass_fds=[child_status, progress.fd, *self.inherited],
                # Ctrl-C is for the supervisor, which ends its children in order.
                process_group=0,
            )
        finally:
            os.close(child_status)
        on_failure.callback(process.wait)
        on_failure.callback(process.kill)
        return Child(self.name, process, os.pidfd_open(process.pid), status, progress)

    def _flags(self, runtime_dir: Path, status: int, progress: ProgressPage) -> list[str]:
        own = {
            **self.own,
            "parent_pid": os.getpid(),
            "runtime_dir": runtime_dir,
            "status_fd": status,
            "progress_fd": progress.fd,
        }
        return flags(self.settings, self.options, **own)

    def _environment(self, runtime_dir: Path) -> dict[str, str]:
        return {
            # grpc's core reports every peer that goes away, which is no news here.
            "GRPC_VERBOSITY": "ERROR",
            **os.environ,
            # What a process that was killed leaves there goes with the folder.
            "TMPDIR": str(runtime_dir),
            **secret_variables(self.settings, self.options),
        }


class State(StrEnum):
    """How far a process is in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    ENDED = "ended"


class Child:
    """A process that was started; belongs to the event loop that it was made on."""

    def __init__(
        self, name: str, process: subprocess.Popen[bytes], pidfd: int, status: int, progress: ProgressPage
    ) -> None:
        """Takes over the descriptors."""
        self.name = name
        self.process = process
        # What it said when it was ready.
        self.ready: dict[str, Any] | None = None
        self.is_leaving = False
        self._status = status
        self._progress = progress
        self._unread = b""
        self._failure: StartupError | None = None
        self._hung_for_s: float | None = None
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        self._settled = loop.create_future()  # ready, or never
        self._pidfd = pidfd
        os.set_blocking(status, False)
        loop.add_reader(status, self._read_status)
        loop.add_reader(self._pidfd, self._reap)

    @property
    def is_running(self) -> bool:
        """Whether it is neither dead nor about to be."""
        return not self._ended.done() and not self.is_leaving

    @property
    def state(self) -> State:
        """How far it is."""
        if self._ended.done():
            return State.ENDED
        if self.is_leaving:
            return State.DRAINING
        return State.STARTING if self.ready is None else State.READY

    @property
    def beats(self) -> int:
        """The count of its event loop; the process must not have ended."""
        return self._progress.beats

    @property
    def is_watched(self) -> bool:
        """Whether its event loop should be counting."""
        return self.state is State.READY

    async def until_ready(self, timeout_s: float) -> None:
        """Waits until it serves. Raises StartupError with the reason if it does not; it may still be running then."""
        await asyncio.wait((self._settled,), timeout=timeout_s)
        if self._failure is not None:
            raise self._failure
        if self._ended.done():
            raise StartupError(f"{self.describe_end()} before it was ready")
        if self.ready is None:
            raise StartupError(f"not ready in time: {self.name}", field="startup_timeout")

    async def until_ended(self) -> None:
        """Waits until it is dead and reaped."""
        await asyncio.wait((self._ended,))

    async def end(self, timeout_s: float) -> None:
        """Asks it to end, and kills it if it does not; returns when it is dead and reaped."""
        self.is_leaving = True
        self.process.terminate()
        await asyncio.wait((self._ended,), timeout=timeout_s)
        if not self._ended.done():
            logger.warning("%s did not end within %g s; it is killed", self.name, timeout_s)
            self.process.kill()
            await asyncio.wait((self._ended,), timeout=_REAP_TIMEOUT_S)
        if not self._ended.done():
            logger.error("%s (process %d) cannot be killed", self.name, self.process.pid)

    def kill_hung(self, stood_still_s: float) -> None:
        """Kills it since its event loop stands still."""
        self._hung_for_s = stood_still_s
        self.process.kill()

    def describe_end(self) -> str:
        """How it ended, for a message."""
        if self._failure is not None:
            return self._failure.message
        if self._hung_for_s is not None:
            return f"{self.name} stood still for {self._hung_for_s:g} s and was killed"
        code = self.process.returncode
        end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return f"{self.name} {end}"

    def _read_status(self) -> None:
        """Takes in what it reported."""
        try:
            data = os.read(self._status, 65536)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(self._status)
            return
        *lines, self._unread = (self._unread + data).split(b"\n")
        for message in map(json.loads, lines):
            if message["state"] == "ready":
                self.ready = message
            else:
                self._failure = _failure(self.name, message)
            self._settle()

    def _reap(self) -> None:
        loop = asyncio.get_running_loop()
        self._read_status()
        self.process.wait()
        for descriptor in (self._pidfd, self._status):
            loop.remove_reader(descriptor)
            os.close(descriptor)
        self._progress.close()
        self._ended.set_result(None)
        self._settle()

    def _settle(self) -> None:
        if not self._settled.done():
            self._settled.set_result(None)


def _failure(name: str, message: dict[str, Any]) -> StartupError:
    """The error that a child reported."""
    kind = getattr(quire.errors, message["error"], StartupError)
    kind = kind if issubclass(kind, StartupError) else StartupError
    error: StartupError = kind(f"{name}: {message['message']}", field=message["field"])
    return error


def end_at_once(children: list[Child]) -> None:
    """Kills processes without an event loop; what is left to do when everything else has failed."""
    for child in children:
        child.process.kill()
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(_REAP_TIMEOUT_S)
