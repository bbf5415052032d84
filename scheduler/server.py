"""The scheduler process: meets its executors, makes the pool, then keeps one lane per executor busy."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quire.config import SchedulerSettings
from quire.errors import QuireError
from quire.internal.v1 import executor_pb2, scheduler_pb2, scheduler_pb2_grpc
from quire.kv_layout import KvPoolLayout
from quire.process import StatusReporter, StopSignal, settle_garbage_collection, unless_stopped
from quire.rpc import bind, new_server
from quire.scheduler.admission import Admission
from quire.scheduler.executor_client import ExecutorClient
from quire.scheduler.executor_link import ExecutorConnector, ExecutorLink
from quire.scheduler.kv_cache import KvCache
from quire.scheduler.lane import Lane, scheduler_state
from quire.scheduler.metrics import MetricStore
from quire.scheduler.monitor.service import MonitorService
from quire.scheduler.outputs import OutputRouter
from quire.scheduler.pool_growth import grow
from quire.scheduler.pool_home import PoolHome, open_pool
from quire.scheduler.request_checks import SchedulerLimits
from quire.scheduler.scheduler import Scheduler
from quire.scheduler.service import SchedulerService
from quire.scheduler.stats_log import log_stats
from quire.scheduler.step_loop import StepLoop, Work
from quire.scheduler.swap_home import SwapHome, open_swap
from quire.scheduler.swap_tier import SwapTier, max_moves
from quire.scheduler.watchdog import Watchdog
from quire.tracing import open_export
from quire.v1 import monitor_pb2_grpc

if TYPE_CHECKING:
    from quire.scheduler.tracing import SchedulerTracing

logger = logging.getLogger(__name__)

# The default of --max-queued-requests, for each of --max-num-seqs.
_QUEUED_PER_SLOT = 4


async def run(settings: SchedulerSettings, status: StatusReporter, stop: StopSignal) -> None:
    """Serves until `stop`. Raises QuireError when executors cannot be met or replaced, or the pool does not fit."""
    async with contextlib.AsyncExitStack() as cleanup:
        clients = [ExecutorClient(i, address) for i, address in enumerate(settings.executors)]
        for client in clients:
            cleanup.push_async_callback(client.close)
        met = await unless_stopped(_meet(clients, settings, cleanup), stop)
        if met is None:
            return
        scheduler = _make_scheduler(settings, met)
        router, work = OutputRouter(), Work()
        router.announce(scheduler_state(scheduler))
        tracing = _make_tracing(settings, scheduler, cleanup)
        lanes = _make_lanes(settings, met, scheduler, router, work, tracing)
        metrics = MetricStore(met.description.max_model_len)
        for lane in lanes:
            cleanup.push_async_callback(lane.close)
            lane.steps.observers.append(metrics.observe_step)

        server = new_server()
        admission = _make_admission(settings, scheduler)
        service = SchedulerService(met.description, scheduler, admission, router, work, lanes, metrics, tracing)
        scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(service, server)
        monitor = MonitorService(scheduler, metrics, met.description.model)
        monitor_pb2_grpc.add_MonitorServiceServicer_to_server(monitor, server)
        bind(server, settings.listen)
        await server.start()
        cleanup.push_async_callback(server.stop, 1.0)
        cleanup.callback(router.close_all)
        cleanup.callback(monitor.close)
        settle_garbage_collection()
        status.ready()
        activities = [lane.run() for lane in lanes]
        if not settings.disable_log_stats:
            activities.append(log_stats(scheduler))
        activities.append(grow(met.home.pool, scheduler.kv_cache.pool, work))
        if met.swap.pool is not None and scheduler.kv_cache.swap is not None:
            activities.append(grow(met.swap.pool, scheduler.kv_cache.swap.pool, work))
        await unless_stopped(_run_all(activities), stop)


@dataclass(frozen=True, slots=True)
class _Meeting:
    """What came of meeting the executors."""

    home: PoolHome
    swap: SwapHome
    description: scheduler_pb2.DescribeResponse
    connector: ExecutorConnector
    links: list[ExecutorLink]


async def _meet(
    clients: list[ExecutorClient], settings: SchedulerSettings, cleanup: contextlib.AsyncExitStack
) -> _Meeting:
    """Learns what the executors serve, makes the pool, and connects them to it."""
    timeout = settings.startup_timeout
    descriptions = list(await asyncio.gather(*(client.describe(timeout) for client in clients)))
    home = open_pool(settings, descriptions, cleanup)
    swap = open_swap(settings, home, descriptions, cleanup)
    connector = ExecutorConnector(settings, home, swap, descriptions[0])
    links = list(await asyncio.gather(*(connector.connect(client) for client in clients)))
    return _Meeting(home, swap, _describe(settings, home.layout, descriptions), connector, links)


def _make_lanes(
    settings: SchedulerSettings,
    met: _Meeting,
    scheduler: Scheduler,
    router: OutputRouter,
    work: Work,
    tracing: SchedulerTracing | None,
) -> list[Lane]:
    lanes = []
    for index, link in enumerate(met.links):
        steps = StepLoop(index, scheduler, link.channel, router, work, met.home.layout.epoch, tracing)
        watchdog = Watchdog(settings.watchdog_timeout)
        lanes.append(Lane(link, met.connector, steps, scheduler, router, work, watchdog, tracing))
    return lanes


def _make_tracing(
    settings: SchedulerSettings, scheduler: Scheduler, cleanup: contextlib.AsyncExitStack
) -> SchedulerTracing | None:
    """None without a collector. Raises StartupError."""
    if settings.otlp_traces_endpoint is None:
        return None
    traces = open_export(settings.otlp_traces_endpoint)
    cleanup.push_async_callback(traces.close)
    from quire.scheduler.tracing import SchedulerTracing  # imports OpenTelemetry

    executors = [traces.tracer("quire-executor", f"executor-{index}") for index in range(len(settings.executors))]
    return SchedulerTracing(scheduler, traces.tracer("quire-scheduler", "scheduler"), executors)


def _make_scheduler(settings: SchedulerSettings, met: _Meeting) -> Scheduler:
    kv_cache = KvCache(
        met.home.layout.num_blocks,
        met.home.layout.block_size,
        num_usable=met.home.num_usable,
        num_lanes=len(settings.executors),
        prefix_caching=settings.enable_prefix_caching,
        journal=met.home.journal,
        swap=_make_swap_tier(settings, met),
    )
    if met.home.journal is not None and not all(link.has_content for link in met.links):
        met.home.journal.wipe()
    # Every executor has attached the pool, so no step of an earlier scheduler is computed any more.
    kv_cache.restore()
    limits = SchedulerLimits(
        met.description.max_model_len,
        settings.max_num_seqs,
        settings.max_num_batched_tokens,
        policy=settings.scheduling_policy,
    )
    return Scheduler(kv_cache, limits)


def _make_swap_tier(settings: SchedulerSettings, met: _Meeting) -> SwapTier | None:
    """Blocks join it as they get memory."""
    if met.swap.pool is None:
        return None
    layout = met.swap.pool.layout
    most = max_moves(layout.block_bytes, layout.block_size, settings.max_num_batched_tokens)
    return SwapTier(layout.num_blocks, max_moves=most, num_lanes=len(settings.executors), num_usable=0)


def _make_admission(settings: SchedulerSettings, scheduler: Scheduler) -> Admission:
    max_requests = settings.max_queued_requests or _QUEUED_PER_SLOT * settings.max_num_seqs
    return Admission(scheduler, max_requests, settings.max_queued_tokens)


def _describe(
    settings: SchedulerSettings, layout: KvPoolLayout, executors: list[executor_pb2.ExecutorDescription]
) -> scheduler_pb2.DescribeResponse:
    model = executors[0]
    return scheduler_pb2.DescribeResponse(
        model=model.model,
        max_model_len=model.max_model_len,
        vocab_size=model.vocab_size,
        block_size=layout.block_size,
        num_blocks=layout.num_blocks,
        kv_cache_bytes=layout.num_blocks * layout.block_bytes,
        kv_bytes_per_token=layout.block_bytes // layout.block_size,
        weight_bytes=model.weight_bytes,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        enable_prefix_caching=settings.enable_prefix_caching,
        executors=executors,
    )


async def _run_all(activities: list[Coroutine[None, None, None]]) -> None:
    """Runs the lanes and the pool's growth; the first that fails ends them all."""
    try:
        async with asyncio.TaskGroup() as group:
            for activity in activities:
                group.create_task(activity)
    except* QuireError as failures:
        raise failures.exceptions[0] from None
