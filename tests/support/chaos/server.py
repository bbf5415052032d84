"""`quire serve` as its users start it, and its processes as the operating system sees them.

Nothing here asks the server about itself where the kernel knows: process ids come from /proc, so that a test kills what
really runs. The server's temporary folder is its own, so that what is left there is its.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.servers import inspect_scheduler, wait_for

from quire.internal.v1 import scheduler_pb2

QUIRE = [sys.executable, "-P", "-m", "quire"]
START_TIMEOUT_S = 180.0
# Until a killed process is back and works. It takes seconds; a busy machine may take ten times as long.
RECOVERY_TIMEOUT_S = 120.0
_ADDRESSES = re.compile(r"REST on http://[^ ]*:(\d+) .*gRPC on [^ ]*:(\d+)\.")


@dataclass
class ChaosServer:
    """A running `quire serve`."""

    process: subprocess.Popen[bytes]
    # TMPDIR of the server; its runtime folder lies in it.
    home: Path
    log: Path
    port: int = 0
    grpc_port: int = 0
    # Every process id that the server ever had, to look for orphans.
    seen: dict[int, psutil.Process] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def said(self) -> str:
        """All that the server's processes wrote to stderr."""
        return self.log.read_text(errors="replace")

    def processes(self) -> dict[str, psutil.Process]:
        """The living processes by title, such as "executor 0", and "serve" for the supervisor."""
        found: dict[str, psutil.Process] = {}
        root = psutil.Process(self.process.pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                title = " ".join(process.cmdline()).strip()
                if title.startswith("quire: ") and process.status() != psutil.STATUS_ZOMBIE:
                    found[title.removeprefix("quire: ")] = process
                self.seen[process.pid] = process
        return found

    def find(self, title: str) -> psutil.Process:
        """The process of that title, once it lives."""
        wait_for(lambda: title in self.processes(), RECOVERY_TIMEOUT_S)
        return self.processes()[title]

    def kill(self, title: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Sends a signal to the process of that title; returns its id."""
        process = self.find(title)
        os.kill(process.pid, number)
        return process.pid

    def wait_replaced(self, title: str, pid: int) -> psutil.Process:
        """Waits until another process than `pid` has the title."""
        wait_for(lambda: (found := self.processes().get(title)) is not None and found.pid != pid, RECOVERY_TIMEOUT_S)
        return self.processes()[title]

    def kv_state(self) -> scheduler_pb2.GetKvCacheStateResponse:
        """Blocks and live block tables, asked of the scheduler itself. Raises grpc.RpcError while there is none."""
        (socket,) = self.home.glob("quire-*/scheduler.sock")
        with inspect_scheduler(f"unix:{socket}") as scheduler:
            return scheduler.GetKvCacheState(scheduler_pb2.GetKvCacheStateRequest(), timeout=10)

    def is_serving(self) -> bool:
        """Whether REST and gRPC both say so."""
        try:
            if httpx.get(f"{self.url}/health", timeout=10).status_code != 200:
                return False
            with grpc.insecure_channel(self.grpc_address) as channel:
                request = health_pb2.HealthCheckRequest()
                status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status
            return bool(status == health_pb2.HealthCheckResponse.SERVING)
        except (httpx.TransportError, grpc.RpcError):
            return False

    def wait_serving(self) -> None:
        """Waits until the server says that it serves."""
        wait_for(self.is_serving, RECOVERY_TIMEOUT_S)

    def wait_idle(self) -> None:
        """Waits until no request is left and every block came back."""
        wait_for(self._is_idle, RECOVERY_TIMEOUT_S)

    def _is_idle(self) -> bool:
        try:
            state = self.kv_state()
        except (grpc.RpcError, ValueError):
            return False
        waiting = state.num_requests_waiting + state.num_requests_running
        return state.held_blocks == 0 and not state.sequences and waiting == 0

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends a signal to the supervisor; returns its exit status."""
        if self.process.poll() is None:
            self.processes()
            self.process.send_signal(number)
        return self.process.wait(RECOVERY_TIMEOUT_S)

    def kill_all(self) -> None:
        """Ends what a failed test left, and frees what the kernel keeps of it."""
        with contextlib.suppress(psutil.Error):
            self.processes()
        for process in self.seen.values():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.kill()
        self.process.wait()

    def check_nothing_left(self) -> None:
        """No process, socket, folder or shared memory has outlived the server."""
        for process in self.seen.values():
            wait_for(lambda process=process: not is_alive(process))
        wait_for(lambda: not list(self.home.iterdir()))
        assert not [path for path in Path("/dev/shm").iterdir() if "quire" in path.name]


@contextlib.contextmanager
def chaos_server(
    *flags: str, env: Mapping[str, str] | None = None, wrapper: tuple[str, ...] = (), kv_cache_memory: str = "64MiB"
) -> Iterator[ChaosServer]:
    """A server with these flags; at the end it must stop with status 0 and leave nothing.

    `wrapper` is a command that runs the command after it, such as prlimit.
    """
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="q-", dir="/tmp")))
        log = Path(stack.enter_context(tempfile.NamedTemporaryFile(prefix="quire-log-")).name)
        server = start_server(home, log, *flags, env=env, wrapper=wrapper, kv_cache_memory=kv_cache_memory)
        try:
            yield server
            assert server.stop() == 0, server.said()
            server.check_nothing_left()
        except BaseException:
            print(server.said())  # pytest shows it with the failure
            raise
        finally:
            server.kill_all()


def start_server(
    home: Path,
    log: Path,
    *flags: str,
    env: Mapping[str, str] | None = None,
    wrapper: tuple[str, ...] = (),
    kv_cache_memory: str = "64MiB",
) -> ChaosServer:
    """Starts a server and returns once it is ready. What it leaves is the caller's to check."""
    own = ["--port", "0", "--grpc-port", "0", "--kv-cache-memory", kv_cache_memory, "--log-level", "warning"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*wrapper, *QUIRE, "serve", *own, *flags],
            stdin=subprocess.DEVNULL,
            stderr=output,
            env={**os.environ, "TMPDIR": str(home), "COLUMNS": "200", **(env or {})},
            process_group=0,
        )
    server = ChaosServer(process, home, log)
    try:
        wait_for(lambda: process.poll() is not None or "Ctrl-C" in server.said(), START_TIMEOUT_S)
        found = _ADDRESSES.search(server.said())
        assert found is not None, server.said()
    except BaseException:
        server.kill_all()
        raise
    server.port, server.grpc_port = int(found[1]), int(found[2])
    server.processes()
    return server


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs, or could."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
