"""Where the KV pool lives: anonymous memory, a file, or a device; and how executors get at it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from quire.config import SchedulerSettings
from quire.handover import offered
from quire.internal.v1 import executor_pb2
from quire.kv_pool import KvPool, KvPoolLayout
from quire.peers import Peers
from quire.scheduler.pool_growth import num_first_blocks


@dataclass(frozen=True, slots=True)
class PoolHome:
    """The pool of a scheduler. `pool` is None where it is a device's own memory."""

    layout: KvPoolLayout
    pool: KvPool | None
    # Blocks that have memory already.
    num_usable: int
    _settings: SchedulerSettings

    @contextlib.contextmanager
    def offered(self, peers: Peers) -> Iterator[executor_pb2.AttachKvPoolRequest]:
        """What tells an executor to attach the pool, which it can while the block lasts.

        Whoever takes a pool that processes share is added to `peers`: nobody else can write it.
        """
        request = executor_pb2.AttachKvPoolRequest(
            epoch=self.layout.epoch, num_blocks=self.layout.num_blocks, block_size=self.layout.block_size
        )
        with contextlib.ExitStack() as handover:
            if self.pool is None:
                request.device_memory.SetInParent()
            else:
                request.handover_socket = str(handover.enter_context(offered("kv-pool", [self.pool.fd], peers)))
            yield request


def open_pool(
    settings: SchedulerSettings,
    layout: KvPoolLayout,
    model: executor_pb2.ExecutorDescription,
    cleanup: contextlib.ExitStack | contextlib.AsyncExitStack,
) -> PoolHome:
    """Makes the pool. Raises KvPoolError if it does not fit."""
    if model.device == executor_pb2.DEVICE_CUDA:
        return PoolHome(layout, None, layout.num_blocks, settings)
    if settings.kv_pool is not None:
        path = settings.kv_pool.absolute()
        pool = cleanup.enter_context(KvPool.create_file(path, layout))
        # Its content means nothing without the scheduler's block tables, which end with this process.
        cleanup.callback(pool.remove, path)
        return PoolHome(layout, pool, layout.num_blocks, settings)
    num_usable = num_first_blocks(layout, model.max_model_len)
    pool = cleanup.enter_context(KvPool.create_memfd(layout, num_usable))
    return PoolHome(layout, pool, num_usable, settings)
