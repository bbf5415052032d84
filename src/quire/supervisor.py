"""Starts the processes of one host, watches them, and ends them in good order.

Executors and the scheduler talk over Unix sockets in a folder of mode 0700 that lives as long as the supervisor.
Every child is spawned (never forked after threads), reports over a pipe, and follows its parent into death.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import quire.errors
from quire.config import (
    ExecutorSettings,
    GatewaySettings,
    LocalSettings,
    ProcessOptions,
    SchedulerSettings,
    ServeSettings,
    flags,
    secret_variables,
)
from quire.errors import StartupError
from quire.model_path import local_folder
from quire.runtime_dir import make_runtime_dir
from quire.weight_store import WeightStore

if TYPE_CHECKING:
    from quire.internal.v1 import scheduler_pb2

# From SIGTERM to SIGKILL. A gateway drains its requests in this time.
_STOP_TIMEOUT_S: Final = 10.0
_DESCRIBE_TIMEOUT_S: Final = 10.0


@dataclass
class Child:
    """One process of ours."""

    name: str
    process: subprocess.Popen[bytes]
    status: int  # the reading end of its status pipe
    ready: dict[str, Any] | None = None
    failure: StartupError | None = None
    _buffer: bytes = field(default=b"", repr=False)

    def read_status(self) -> bool:
        """Takes in what the child reported; False once it will report no more."""
        data = os.read(self.status, 65536)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for message in map(json.loads, lines):
            if message["state"] == "ready":
                self.ready = message
            else:
                self.failure = _failure(self.name, message)
        return bool(data)

    def describe_end(self) -> str:
        """How the process ended, for a message."""
        code = self.process.wait()
        end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return f"{self.name} {end}"


class Supervisor:
    """The processes of `quire serve`, or of an `LLM` (which is its own gateway). A context manager."""

    def __init__(self, settings: LocalSettings) -> None:
        self._settings = settings
        self.children: list[Child] = []
        self._runtime_dir: Path | None = None
        self._weight_store: WeightStore | None = None

    @property
    def scheduler_address(self) -> str:
        """Where gateways find the scheduler."""
        return self._address("scheduler")

    def start(self, gateway: ServeSettings | None = None) -> dict[str, Any]:
        """Starts everything and returns when all of it serves, with what the last process said when it was ready.

        With `gateway` that is a gateway, and the ports it serves. Raises StartupError with the reason of the first
        process that fails; the caller stops the others. CheckpointError if there is no such folder, before any start.
        """
        local_folder(self._settings.model)
        self._runtime_dir = make_runtime_dir()
        self._weight_store = WeightStore(self._runtime_dir / "weights.sock")
        self._spawn_all(gateway)
        self._await_ready(time.monotonic() + self._settings.startup_timeout)
        return self.children[-1].ready or {}

    def describe(self) -> scheduler_pb2.DescribeResponse:
        """What is served, and with how much memory."""
        # Imported now, so that the children were started 0.1 s sooner.
        from quire.internal.v1 import scheduler_pb2, scheduler_pb2_grpc
        from quire.rpc import errors_from_status, open_sync_channel

        with open_sync_channel(self.scheduler_address) as channel, errors_from_status("the scheduler"):
            stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
            return stub.Describe(scheduler_pb2.DescribeRequest(), timeout=_DESCRIBE_TIMEOUT_S)

    def wait(self) -> Child:
        """Blocks until a child has ended, and returns it."""
        with selectors.DefaultSelector() as selector:
            for child in self.children:
                selector.register(child.status, selectors.EVENT_READ, child)
            while True:
                for child in (key.data for key, _ in selector.select()):
                    if not child.read_status():
                        ended: Child = child
                        return ended

    def stop(self) -> None:
        """Ends all children, the last started first, and removes the sockets. Does nothing the second time."""
        while self.children:
            _end(self.children.pop())
        if self._weight_store is not None:
            self._weight_store.close()
            self._weight_store = None
        if self._runtime_dir is not None:
            shutil.rmtree(self._runtime_dir, ignore_errors=True)
            self._runtime_dir = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _address(self, name: str) -> str:
        return f"unix:{self._runtime_dir}/{name}.sock"

    def _spawn_all(self, gateway: ServeSettings | None) -> None:
        addresses = [self._address(f"executor-{i}") for i in range(self._settings.num_executors)]
        assert self._weight_store is not None
        for i, address in enumerate(addresses):
            own: dict[str, Any] = {"listen": address, "index": i, "weight_store": self._weight_store.address}
            self._spawn(f"executor {i}", "executor", ExecutorSettings, self._settings, **own)
        own = {"listen": self.scheduler_address, "executors": addresses}
        self._spawn("scheduler", "scheduler", SchedulerSettings, self._settings, **own)
        if gateway is not None:
            self._spawn("gateway 0", "gateway", GatewaySettings, gateway, scheduler=self.scheduler_address, index=0)

    def _spawn(
        self, name: str, command: str, process: type[ProcessOptions], settings: LocalSettings, **own: object
    ) -> None:
        status, child_status = os.pipe()
        own |= {"parent_pid": os.getpid(), "status_fd": child_status, "runtime_dir": self._runtime_dir}
        try:
            spawned = subprocess.Popen(
                [sys.executable, "-P", "-m", "quire", command, *flags(settings, process, **own)],
                stdin=subprocess.DEVNULL,
                # grpc's core reports every peer that goes away, which is no news here.
                env={"GRPC_VERBOSITY": "ERROR", **os.environ, **secret_variables(settings, process)},
                pass_fds=[child_status],
                # Ctrl-C is for the supervisor, which ends its children in order.
                process_group=0,
            )
        except BaseException:
            os.close(status)
            raise
        finally:
            os.close(child_status)
        self.children.append(Child(name, spawned, status))

    def _await_ready(self, deadline: float) -> None:
        """Waits for every child to serve. Raises StartupError as soon as one cannot."""
        with selectors.DefaultSelector() as selector:
            for child in self.children:
                selector.register(child.status, selectors.EVENT_READ, child)
            while waiting := [child.name for child in self.children if child.ready is None]:
                if not (events := selector.select(max(deadline - time.monotonic(), 0))):
                    raise StartupError(f"not ready in time: {', '.join(waiting)}", field="startup_timeout")
                for child in (key.data for key, _ in events):
                    reports_more = child.read_status()
                    if child.failure is not None:
                        raise child.failure
                    if not reports_more:
                        raise StartupError(f"{child.describe_end()} before it was ready")


def _failure(name: str, message: dict[str, Any]) -> StartupError:
    """The error that a child reported."""
    kind = getattr(quire.errors, message["error"], StartupError)
    kind = kind if issubclass(kind, StartupError) else StartupError
    error: StartupError = kind(f"{name}: {message['message']}", field=message["field"])
    return error


def _end(child: Child) -> None:
    """Asks a child to end, and kills it if it does not."""
    child.process.terminate()
    try:
        child.process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.process.kill()
        child.process.wait()
    os.close(child.status)
