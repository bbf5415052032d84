"""The memory of the swap tier: anonymous, shared with executors, and gone with the scheduler and them.

Another scheduler begins with an empty tier: what host blocks hold is written down nowhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quire.config import SchedulerSettings
from quire.handover import offered
from quire.internal.v1 import executor_pb2
from quire.kv_pool import KvPool
from quire.peers import Peers
from quire.scheduler.kv_budget import plan_swap
from quire.scheduler.pool_home import PoolHome


@dataclass(frozen=True, slots=True)
class SwapHome:
    """`pool` is None where there is no swap tier."""

    pool: KvPool | None

    @contextlib.contextmanager
    def offered(self, request: executor_pb2.AttachKvPoolRequest, peers: Peers) -> Iterator[None]:
        """Adds to a request what an executor needs to attach the tier, which it can while the block lasts.

        Whoever takes it is added to `peers`: nobody else can write it.
        """
        if self.pool is None:
            yield
            return
        with offered("swap-pool", [self.pool.fd], peers) as address:
            request.swap.handover_socket = str(address)
            request.swap.num_blocks = self.pool.layout.num_blocks
            yield


def open_swap(
    settings: SchedulerSettings,
    home: PoolHome,
    executors: Sequence[executor_pb2.ExecutorDescription],
    cleanup: contextlib.ExitStack | contextlib.AsyncExitStack,
) -> SwapHome:
    """Makes the tier behind a pool; its blocks get their memory later (`pool_growth.py`).

    Raises KvPoolError if it does not fit.
    """
    layout = plan_swap(settings, home.layout, list(executors), home.pool.num_missing_bytes)
    if layout is None:
        return SwapHome(None)
    pool = KvPool.create_memfd(layout, 0, "swap_space")
    cleanup.callback(pool.close)
    return SwapHome(pool)
