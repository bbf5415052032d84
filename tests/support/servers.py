"""Real servers for end-to-end tests: all processes, real sockets, free ports."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from quire.config import ServeSettings
from quire.internal.v1 import scheduler_pb2, scheduler_pb2_grpc
from quire.rpc import open_sync_channel
from quire.supervisor import Supervisor


@dataclass
class Server:
    """A running server."""

    supervisor: Supervisor
    port: int
    grpc_port: int
    scheduler: scheduler_pb2_grpc.SchedulerServiceStub

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def kv_state(self) -> scheduler_pb2.GetKvCacheStateResponse:
        """Blocks and live block tables."""
        return self.scheduler.GetKvCacheState(scheduler_pb2.GetKvCacheStateRequest(), timeout=10)

    def wait_idle(self) -> None:
        """Waits until no sequence is left and every block came back."""
        wait_for(lambda: (state := self.kv_state()).held_blocks == 0 and not state.sequences)


@contextlib.contextmanager
def running_server(**settings: Any) -> Iterator[Server]:
    """A server with these settings (default: the bundled model), ended at the end of the block."""
    serve = ServeSettings.load(
        {"port": 0, "grpc_port": 0, "kv_cache_memory": "64MiB", "log_level": "warning", **settings}
    )
    with Supervisor(serve) as supervisor:
        ready = supervisor.start(gateway=serve)
        with inspect_scheduler(supervisor.scheduler_address) as scheduler:
            yield Server(supervisor, ready["port"], ready["grpc_port"], scheduler)


@contextlib.contextmanager
def inspect_scheduler(address: str) -> Iterator[scheduler_pb2_grpc.SchedulerServiceStub]:
    """A stub of a running scheduler."""
    with open_sync_channel(address) as channel:
        yield scheduler_pb2_grpc.SchedulerServiceStub(channel)


@contextlib.contextmanager
def stopped_executor(server: Server) -> Iterator[None]:
    """No step ends while the block runs, which must be done before the watchdog is."""
    (executor,) = (child.process for child in server.supervisor.children if child.name.startswith("executor"))
    os.kill(executor.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(executor.pid, signal.SIGCONT)


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Waits until a condition holds; the deadline only keeps a failing test from hanging."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)
