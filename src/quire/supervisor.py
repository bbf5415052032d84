"""Starts the processes of one host, keeps them alive, and ends them in good order.

Executors and the scheduler talk over Unix sockets in a folder of mode 0700 that lives as long as the supervisor. Every
child is spawned (never forked after threads), reports over a pipe, counts in a page of shared memory, and follows its
parent into death. What must outlive a child is held here: packed weights, the KV pool, the ports.

One thread with an event loop does all of it (`supervision/`); others call in.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from quire.config import (
    DevicePoolSettings,
    ExecutorSettings,
    GatewaySettings,
    LocalSettings,
    SchedulerSettings,
    ServeSettings,
)
from quire.errors import QuireError, StartupError
from quire.model_path import local_folder
from quire.pool_store import PoolStore
from quire.ports import PortReservation
from quire.runtime_dir import choose_runtime_dir, create_runtime_dir
from quire.supervision.child import Child, ChildSpec, end_at_once
from quire.supervision.control import ControlServer, Message
from quire.supervision.fleet import Fleet
from quire.weight_store import WeightStore

if TYPE_CHECKING:
    from quire.internal.v1 import scheduler_pb2

T = TypeVar("T")

_DESCRIBE_TIMEOUT_S: Final = 10.0
_WEIGHT_STORE: Final = "weights.sock"
_POOL_STORE: Final = "pool.sock"
_DEVICE_POOL: Final = "device-pool.sock"


class Supervisor:
    """The processes of `quire serve`, or of an `LLM` (which is its own gateway). A context manager."""

    def __init__(self, settings: LocalSettings) -> None:
        self._settings = settings
        self._failure: concurrent.futures.Future[StartupError] = concurrent.futures.Future()
        # Whatever must be let go of at the end.
        self._held = contextlib.ExitStack()
        self._runtime_dir: Path | None = None
        self._ports: dict[str, int] = {}
        self._fleet: Fleet | None = None
        self._control: ControlServer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def scheduler_address(self) -> str:
        """Where gateways find the scheduler."""
        return self._address("scheduler")

    @property
    def children(self) -> list[Child]:
        """The processes that serve, or are about to: executors, the scheduler, gateways."""
        keepers = [] if self._fleet is None else self._fleet.keepers
        return [keeper.child for keeper in keepers if keeper.child is not None]

    def start(self, gateway: ServeSettings | None = None) -> dict[str, Any]:
        """Starts everything and returns when all of it serves, with what the last process said when it was ready.

        With `gateway` that is a gateway, and the ports it serves. Raises StartupError with the reason of the first
        process that fails; the caller stops the others. CheckpointError if there is no such folder, before any start.
        """
        local_folder(self._settings.model)
        self._runtime_dir = runtime_dir = choose_runtime_dir()
        if gateway is not None:
            for setting in ("port", "grpc_port"):
                reservation = PortReservation(gateway.host, getattr(gateway, setting), setting)
                self._ports[setting] = self._held.enter_context(contextlib.closing(reservation)).port
        self._fleet = Fleet(
            self._settings,
            runtime_dir,
            self._executors(runtime_dir / _WEIGHT_STORE, runtime_dir / _DEVICE_POOL),
            self._scheduler(runtime_dir / _POOL_STORE),
            [] if gateway is None else self._gateways(gateway),
            self._device_pool(runtime_dir / _DEVICE_POOL),
            self._fail,
        )
        self._control = ControlServer(runtime_dir, self._obey)
        self._loop = self._held.enter_context(contextlib.closing(asyncio.new_event_loop()))
        self._thread = threading.Thread(target=self._loop.run_forever, name="supervisor", daemon=True)
        self._thread.start()
        self._call(self._start(runtime_dir, self._fleet, self._control))
        return self.children[-1].ready or {}

    def describe(self) -> scheduler_pb2.DescribeResponse:
        """What is served, and with how much memory."""
        # Imported now, so that the children were started 0.1 s sooner.
        from quire.internal.v1 import scheduler_pb2, scheduler_pb2_grpc
        from quire.rpc import errors_from_status, open_sync_channel

        with open_sync_channel(self.scheduler_address) as channel, errors_from_status("the scheduler"):
            stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
            return stub.Describe(scheduler_pb2.DescribeRequest(), timeout=_DESCRIBE_TIMEOUT_S)

    def wait(self) -> StartupError:
        """Blocks for as long as all processes can be had, and returns why one cannot."""
        return self._failure.result()

    def on_failure(self, call: Callable[[StartupError], None]) -> None:
        """Calls, from some thread, when a process cannot be had any more."""
        self._failure.add_done_callback(lambda failure: call(failure.result()))

    def stop(self) -> None:
        """Ends all children: gateways when their requests have ended, then the others. Nothing the second time."""
        if threading.current_thread() is self._thread:
            # A garbage collection, which may close a forgotten LLM, may happen on this very thread.
            threading.Thread(target=self.stop, name="supervisor-stop").start()
            return
        with self._held:
            fleet, control, thread = self._fleet, self._control, self._thread
            if fleet is not None and control is not None and thread is not None and thread.is_alive():
                try:
                    self._call(self._stop(fleet, control))
                finally:
                    self._end_thread(fleet, thread)

    def hurry(self) -> None:
        """Cuts a `stop` short: requests are not waited for. Safe in a signal handler."""
        if self._loop is not None and self._fleet is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                self._loop.call_soon_threadsafe(self._fleet.hurry)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _address(self, name: str) -> str:
        return f"unix:{self._runtime_dir}/{name}.sock"

    def _executors(self, weight_store: Path, device_pool: Path) -> list[ChildSpec]:
        specs = []
        for index in range(self._settings.num_executors):
            own = {
                "listen": self._address(f"executor-{index}"),
                "index": index,
                "weight_store": weight_store,
                "device_pool": device_pool,
            }
            specs.append(ChildSpec(f"executor {index}", "executor", ExecutorSettings, self._settings, own))
        return specs

    def _device_pool(self, address: Path) -> ChildSpec:
        return ChildSpec("device pool", "device-pool", DevicePoolSettings, self._settings, {"address": address})

    def _scheduler(self, pool_store: Path) -> ChildSpec:
        addresses = [self._address(f"executor-{index}") for index in range(self._settings.num_executors)]
        own = {"listen": self.scheduler_address, "executors": addresses, "pool_store": pool_store}
        return ChildSpec("scheduler", "scheduler", SchedulerSettings, self._settings, own)

    def _gateways(self, settings: ServeSettings) -> list[ChildSpec]:
        own = {"scheduler": self.scheduler_address, "reuse_port": True, **self._ports}
        return [
            ChildSpec(f"gateway {index}", "gateway", GatewaySettings, settings, {**own, "index": index})
            for index in range(settings.gateways)
        ]

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the supervisor's thread."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _fail(self, error: StartupError) -> None:
        if not self._failure.done():
            self._failure.set_result(error)

    async def _start(self, runtime_dir: Path, fleet: Fleet, control: ControlServer) -> None:
        async def open_runtime_dir() -> None:
            create_runtime_dir(runtime_dir)
            self._held.callback(shutil.rmtree, runtime_dir, ignore_errors=True)
            self._held.enter_context(contextlib.closing(WeightStore(runtime_dir / _WEIGHT_STORE)))
            self._held.enter_context(contextlib.closing(PoolStore(runtime_dir / _POOL_STORE)))
            await control.start()

        # Not before there are children, which remove the folder if this process is killed.
        await fleet.start(open_runtime_dir)

    async def _stop(self, fleet: Fleet, control: ControlServer) -> None:
        await fleet.stop()
        await control.close()

    def _end_thread(self, fleet: Fleet, thread: threading.Thread) -> None:
        """Ends the thread; what it should have ended is killed."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        thread.join()
        end_at_once(fleet.all_children)
        self._fleet = None

    async def _obey(self, message: Message) -> Message:
        """Answers a command of the control socket."""
        assert self._fleet is not None
        match message.get("command"):
            case "status":
                model = self._settings.model_name if isinstance(self._settings, ServeSettings) else self._settings.model
                return {"pid": os.getpid(), "model": model, "ports": self._ports, "processes": self._fleet.status()}
            case "upgrade":
                return {"upgraded": await self._fleet.upgrade(str(message.get("process")))}
            case other:
                raise QuireError(f"there is no command {other!r}", field="command")
