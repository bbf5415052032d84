"""Starts the processes of one host, keeps them alive, and ends them in good order.

Executors and the scheduler talk over Unix sockets in a folder of mode 0700 that lives as long as the supervisor. Every
child is spawned (never forked after threads), reports over a pipe, counts in a page of shared memory, and follows its
parent into death. What must outlive a child is held here: packed weights, the KV pool, the ports.

One thread with an event loop does all of it (a task per process, see `supervision/keeper.py`); others call in.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import shutil
import threading
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from quire.config import ExecutorSettings, GatewaySettings, LocalSettings, SchedulerSettings, ServeSettings
from quire.errors import StartupError
from quire.model_path import local_folder
from quire.ports import PortReservation
from quire.runtime_dir import make_runtime_dir
from quire.supervision.child import Child, ChildSpec, end_at_once
from quire.supervision.keeper import END_TIMEOUT_S, Keeper
from quire.supervision.watchdog import INTERVAL_S, Watchdog
from quire.weight_store import WeightStore

if TYPE_CHECKING:
    from quire.internal.v1 import scheduler_pb2

logger = logging.getLogger(__name__)

T = TypeVar("T")

_DESCRIBE_TIMEOUT_S: Final = 10.0


class Supervisor:
    """The processes of `quire serve`, or of an `LLM` (which is its own gateway). A context manager."""

    def __init__(self, settings: LocalSettings) -> None:
        self._settings = settings
        self._executors: list[Keeper] = []
        self._schedulers: list[Keeper] = []  # one, once started
        self._gateways: list[Keeper] = []
        self._failure: concurrent.futures.Future[StartupError] = concurrent.futures.Future()
        self._runtime_dir: Path | None = None
        self._weight_store: WeightStore | None = None
        self._ports: dict[str, PortReservation] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="supervisor", daemon=True)
        self._starts: list[asyncio.Task[None]] = []
        self._watchdog: asyncio.Task[None] | None = None

    @property
    def scheduler_address(self) -> str:
        """Where gateways find the scheduler."""
        return self._address("scheduler")

    @property
    def children(self) -> list[Child]:
        """The processes that serve, or are about to: executors, the scheduler, gateways."""
        return [keeper.child for keeper in self._keepers if keeper.child is not None]

    def start(self, gateway: ServeSettings | None = None) -> dict[str, Any]:
        """Starts everything and returns when all of it serves, with what the last process said when it was ready.

        With `gateway` that is a gateway, and the ports it serves. Raises StartupError with the reason of the first
        process that fails; the caller stops the others. CheckpointError if there is no such folder, before any start.
        """
        local_folder(self._settings.model)
        self._runtime_dir = make_runtime_dir()
        self._weight_store = WeightStore(self._runtime_dir / "weights.sock")
        if gateway is not None:
            for setting in ("port", "grpc_port"):
                self._ports[setting] = PortReservation(gateway.host, getattr(gateway, setting), setting)
        self._plan(self._runtime_dir, self._weight_store, gateway)
        self._thread.start()
        self._call(self._start_all())
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

    def stop(self) -> None:
        """Ends all children: gateways when their requests have ended, then the others. Nothing the second time."""
        if threading.current_thread() is self._thread:
            # A garbage collection, which may close a forgotten LLM, may happen on this very thread.
            threading.Thread(target=self.stop, name="supervisor-stop").start()
            return
        try:
            if self._thread.is_alive():
                self._call(self._stop_all())
        finally:
            self._let_go()

    def hurry(self) -> None:
        """Cuts a `stop` short: what has been asked to end is killed. Safe in a signal handler."""
        with contextlib.suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._kill_leaving)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _keepers(self) -> list[Keeper]:
        return [*self._executors, *self._schedulers, *self._gateways]

    def _address(self, name: str) -> str:
        return f"unix:{self._runtime_dir}/{name}.sock"

    def _plan(self, runtime_dir: Path, weight_store: WeightStore, gateway: ServeSettings | None) -> None:
        """A keeper for each process."""

        def keeper(spec: ChildSpec, drain_s: float = 0.0) -> Keeper:
            return Keeper(spec, runtime_dir, drain_s + END_TIMEOUT_S, self._fail)

        settings = self._settings
        addresses = [self._address(f"executor-{i}") for i in range(settings.num_executors)]
        for i, address in enumerate(addresses):
            own: dict[str, object] = {"listen": address, "index": i, "weight_store": weight_store.address}
            self._executors.append(keeper(ChildSpec(f"executor {i}", "executor", ExecutorSettings, settings, own)))
        own = {"listen": self.scheduler_address, "executors": addresses}
        self._schedulers.append(keeper(ChildSpec("scheduler", "scheduler", SchedulerSettings, settings, own)))
        for i in range(gateway.gateways if gateway is not None else 0):
            ports = {setting: reservation.port for setting, reservation in self._ports.items()}
            own = {"scheduler": self.scheduler_address, "index": i, "reuse_port": True, **ports}
            spec = ChildSpec(f"gateway {i}", "gateway", GatewaySettings, gateway or settings, own)
            self._gateways.append(keeper(spec, settings.shutdown_timeout))

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the supervisor's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _fail(self, error: StartupError) -> None:
        if not self._failure.done():
            self._failure.set_result(error)

    async def _start_all(self) -> None:
        self._starts = [asyncio.create_task(keeper.start()) for keeper in self._keepers]
        await asyncio.gather(*self._starts)
        self._watchdog = asyncio.create_task(self._watch_progress(), name="watchdog")

    async def _watch_progress(self) -> None:
        """Kills processes that stand still; their keepers start others."""
        timeout_s = self._settings.watchdog_timeout
        watchdog: Watchdog[Child] = Watchdog(timeout_s)
        while True:
            children = [child for keeper in self._keepers for child in keeper.children]
            for child in watchdog.look({child: child.beats for child in children if child.is_watched}):
                child.kill_hung(timeout_s)
            await asyncio.sleep(INTERVAL_S)

    async def _stop_all(self) -> None:
        await _cancel(self._starts)
        # While gateways drain, whatever else dies is started again: no stream is cut off.
        for kind in (self._gateways, self._schedulers, self._executors):
            await asyncio.gather(*(keeper.stop() for keeper in kind))
        await _cancel([self._watchdog] if self._watchdog is not None else [])

    def _kill_leaving(self) -> None:
        for keeper in self._keepers:
            for child in keeper.children:
                if child.is_leaving:
                    child.process.kill()

    def _let_go(self) -> None:
        """Ends the thread and frees everything held; what it should have ended is killed."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        if not self._loop.is_closed():
            self._loop.close()
        end_at_once([child for keeper in self._keepers for child in keeper.children])
        self._executors, self._schedulers, self._gateways = [], [], []
        for reservation in self._ports.values():
            reservation.close()
        self._ports = {}
        if self._weight_store is not None:
            self._weight_store.close()
            self._weight_store = None
        if self._runtime_dir is not None:
            shutil.rmtree(self._runtime_dir, ignore_errors=True)
            self._runtime_dir = None


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
