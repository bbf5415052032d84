"""Where the KV pool lives: anonymous memory, a file, or with the executor.

A scheduler takes over the pool of the one before it, from the supervisor (`pool_store.py`) or by the name of its file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from quire import pool_file
from quire.config import SchedulerSettings
from quire.errors import KvPoolError
from quire.handover import offered
from quire.internal.v1 import executor_pb2
from quire.kv_journal import KvJournal
from quire.kv_layout import KvPoolLayout, PoolState
from quire.kv_pool import KvPool
from quire.peers import Peers
from quire.pool_store import deposit_pool, fetch_pool
from quire.scheduler.kv_budget import check_reusable, plan_pool
from quire.scheduler.pool_growth import num_first_blocks

logger = logging.getLogger(__name__)

# Processes of a server that was killed finish the step that they have begun, and end.
_LOCK_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class PoolHome:
    """The pool of a scheduler, or the journal of one that the executor provides."""

    pool: KvPool
    # Blocks that have memory already.
    num_usable: int
    # None without a prefix cache.
    journal: KvJournal | None

    @property
    def layout(self) -> KvPoolLayout:
        return self.pool.layout

    @property
    def is_with_executor(self) -> bool:
        """Whether the blocks are not here, but in memory that the executor provides."""
        return self.layout.num_ranks == 0

    @contextlib.contextmanager
    def offered(self, peers: Peers) -> Iterator[executor_pb2.AttachKvPoolRequest]:
        """What tells an executor to attach the pool, which it can while the block lasts.

        Whoever takes a pool that processes share is added to `peers`: nobody else can write it. A pool that the
        executor provides is the one of its predecessor only if `peers` can be ended: else one of them could write it.
        """
        request = executor_pb2.AttachKvPoolRequest(
            epoch=self.layout.epoch, num_blocks=self.layout.num_blocks, block_size=self.layout.block_size
        )
        with contextlib.ExitStack() as handover:
            if self.is_with_executor:
                request.executor_memory.is_new = not peers.can_be_ended
            else:  # a file too: a sandboxed executor cannot open one for writing
                request.handover_socket = str(handover.enter_context(offered("kv-pool", [self.pool.fd], peers)))
            yield request


def open_pool(
    settings: SchedulerSettings,
    executors: Sequence[executor_pb2.ExecutorDescription],
    cleanup: contextlib.ExitStack | contextlib.AsyncExitStack,
) -> PoolHome:
    """The pool that was there before, if it fits and can be trusted, or a new one.

    Its journal may be read once all executors have attached the pool: until then steps of the last scheduler may still
    be computed. Raises KvPoolError if no pool can be made, and StartupError.
    """
    executors = list(executors)
    if executors[0].pool_home == executor_pb2.POOL_HOME_EXECUTOR and settings.kv_pool is not None:
        message = f"--kv-pool {settings.kv_pool}: these executors provide the KV pool, which cannot be in a file"
        raise KvPoolError(message, field="kv_pool")
    pool = _adopt(settings, executors) or _make(settings, executors)
    cleanup.callback(_close, pool, settings)
    num_usable = pool.layout.num_blocks
    if settings.kv_pool is None and pool.layout.num_ranks:
        num_usable = num_first_blocks(pool.layout, executors[0].max_model_len)
        # Of a pool that is taken over they may be more than they were. What is allocated stays as it is.
        pool.allocate(0, num_usable)
    journal = pool.journal()
    if not settings.enable_prefix_caching:
        # Nobody is going to keep it, so that it would not be true much longer.
        journal.wipe()
        return PoolHome(pool, num_usable, None)
    return PoolHome(pool, num_usable, journal)


def _adopt(settings: SchedulerSettings, executors: list[executor_pb2.ExecutorDescription]) -> KvPool | None:
    """The pool of the last scheduler; None, and no trace left, if there is none or it is of no use."""
    descriptor = _find(settings)
    if descriptor is None:
        return None
    path = settings.kv_pool
    try:
        with contextlib.ExitStack() as on_refusal:
            # The pool closes the descriptor that it is given, and the file's name must outlive that.
            if path is not None:
                on_refusal.callback(path.unlink, missing_ok=True)
            pool = on_refusal.enter_context(KvPool(descriptor))
            pool.check_content()
            check_reusable(pool.layout, settings, executors)
            on_refusal.pop_all()
    except KvPoolError as error:
        logger.warning("the KV pool that was there is replaced by a new one: %s", error.message)
        if settings.pool_store is not None:
            deposit_pool(settings.pool_store, None)
        return None
    pool.mark(PoolState.OPEN)
    logger.info("took over a KV pool of %d blocks", pool.layout.num_blocks)
    return pool


def _find(settings: SchedulerSettings) -> int | None:
    """A descriptor of the pool that the last scheduler had: from the supervisor, or by the file's name."""
    path = settings.kv_pool
    if settings.pool_store is not None and (descriptor := fetch_pool(settings.pool_store)) is not None:
        if path is None or pool_file.is_at(descriptor, path):
            return descriptor
        os.close(descriptor)
    return None if path is None else pool_file.open_unused(path, _LOCK_TIMEOUT_S)


def _make(settings: SchedulerSettings, executors: list[executor_pb2.ExecutorDescription]) -> KvPool:
    # An epoch names the pool: a late message of an older one is refused.
    layout = plan_pool(settings, executors, _new_epoch())
    if settings.kv_pool is not None:
        pool = pool_file.create(settings.kv_pool, layout)
    else:
        pool = KvPool.create_memfd(layout, num_first_blocks(layout, executors[0].max_model_len))
    if settings.pool_store is not None:
        deposit_pool(settings.pool_store, pool.fd)
    return pool


def _close(pool: KvPool, settings: SchedulerSettings) -> None:
    """Leaves a file as it is needed by the next server, even one that starts after the machine did."""
    if settings.kv_pool is not None:
        try:
            pool.mark(PoolState.CLEAN)
        except OSError:
            logger.exception("the KV pool %s is not on the disk: it will not outlive this boot", settings.kv_pool)
    pool.close()


def _new_epoch() -> int:
    return secrets.randbits(63)
