"""All that ties one executor to a lane: what it is, the pool it has attached, its steps, and the means to end it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Final

from quire.config import SchedulerSettings
from quire.errors import QuireError, StartupError
from quire.internal.v1 import executor_pb2
from quire.peers import Peers
from quire.process import first_of
from quire.scheduler.executor_client import ExecutorClient, StepChannel
from quire.scheduler.kv_budget import check_same_model
from quire.scheduler.pool_home import PoolHome
from quire.scheduler.swap_home import SwapHome
from quire.scheduler.watchdog import HungExecutorError, Watchdog

# From SIGKILL to the end of a process: the kernel gives back its memory in this time.
_FENCE_TIMEOUT_S: Final = 30.0


class ForeignExecutorError(StartupError):
    """An executor serves something else than the lane: what is in the pool means nothing to it."""


@dataclass(frozen=True, slots=True, eq=False)
class ExecutorLink:
    """An executor that has attached the pool and takes steps."""

    client: ExecutorClient
    description: executor_pb2.ExecutorDescription
    channel: StepChannel
    # The processes that took the pool or the rings: the executor, and whoever was it while we connected.
    peers: Peers
    # Whether the pool holds what the executor before this one wrote; else everything in it is lost.
    has_content: bool = True

    async def close(self) -> None:
        """Ends its steps; it lives on."""
        await self.channel.close()
        self.peers.close()


class ExecutorConnector:
    """Ties executors to one pool."""

    def __init__(
        self, settings: SchedulerSettings, home: PoolHome, swap: SwapHome, model: executor_pb2.ExecutorDescription
    ) -> None:
        self._settings = settings
        self._home = home
        self._swap = swap
        self._model = model

    async def connect(self, client: ExecutorClient) -> ExecutorLink:
        """Describes the executor, has it attach the pool, opens steps.

        Raises ForeignExecutorError for one that serves something else, and QuireError where one of the steps fails.
        """
        timeout = self._settings.startup_timeout
        description = await client.describe(timeout)
        try:
            check_same_model(self._model, description)
        except StartupError as error:
            raise ForeignExecutorError(f"{client.name} cannot succeed the one before it: {error.message}") from error
        with contextlib.ExitStack() as on_failure:
            peers = Peers()
            on_failure.callback(peers.close)
            client.identify(peers)
            with self._home.offered(peers) as request, self._swap.offered(request, peers):
                attached = await self._attach(client, request, peers)
            channel = await client.open_steps(self._settings.step_transport, timeout, peers)
            on_failure.pop_all()
        return ExecutorLink(
            client, description, channel, peers, not self._home.is_with_executor or attached.has_content
        )

    async def _attach(
        self, client: ExecutorClient, request: executor_pb2.AttachKvPoolRequest, peers: Peers
    ) -> executor_pb2.AttachKvPoolResponse:
        """Has the executor attach the pool; ends one that cannot, since a step of an earlier scheduler hangs in it."""
        watchdog = Watchdog(self._settings.watchdog_timeout)
        watching = watchdog.watch(lambda: True, client.progress)
        try:
            return await first_of(client.attach(request, self._settings.startup_timeout), watching)
        except HungExecutorError:
            await peers.end(_FENCE_TIMEOUT_S)
            raise

    async def fence(self, link: ExecutorLink) -> None:
        """Ends an executor for good, so that nobody but its successor writes the pool.

        Raises QuireError where its death cannot be proved; a pool that its successor would share is used by nobody
        again then: the next scheduler makes another.
        """
        is_shared = not self._home.is_with_executor or self._swap.pool is not None or link.peers.can_be_ended
        if not await link.peers.end(_FENCE_TIMEOUT_S) and is_shared:
            self._home.pool.discard()
            raise QuireError(
                f"{link.client.name} may still write the KV pool: it cannot be seen to have ended. The pool is given up"
            )
