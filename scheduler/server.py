"""The scheduler process: meets its executors, makes the pool, then runs one step loop per executor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets

from quire.config import SchedulerSettings
from quire.errors import QuireError
from quire.handover import offered
from quire.internal.v1 import executor_pb2, scheduler_pb2, scheduler_pb2_grpc
from quire.kv_pool import KvPool, KvPoolLayout
from quire.process import StatusReporter, StopSignal, settle_garbage_collection, unless_stopped
from quire.rpc import bind, new_server
from quire.scheduler.executor_client import ExecutorClient, StepChannel
from quire.scheduler.kv_budget import plan_pool
from quire.scheduler.kv_cache import KvCache
from quire.scheduler.outputs import OutputRouter
from quire.scheduler.scheduler import Scheduler, SchedulerLimits
from quire.scheduler.service import SchedulerService
from quire.scheduler.step_loop import StepLoop, Work

logger = logging.getLogger(__name__)


async def run(settings: SchedulerSettings, status: StatusReporter, stop: StopSignal) -> None:
    """Serves until `stop`. Raises QuireError when an executor fails or the pool does not fit."""
    async with contextlib.AsyncExitStack() as cleanup:
        executors = [ExecutorClient(i, address) for i, address in enumerate(settings.executors)]
        for executor in executors:
            cleanup.push_async_callback(executor.close)
        met = await unless_stopped(_meet(executors, settings, cleanup), stop)
        if met is None:
            return
        layout, description, channels = met

        scheduler = _make_scheduler(settings, layout, description)
        router, work = OutputRouter(), Work()
        loops = [
            StepLoop(lane, scheduler, channel, router, work, layout.epoch) for lane, channel in enumerate(channels)
        ]

        server = new_server()
        service = SchedulerService(description, scheduler, router, work, loops)
        scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(service, server)
        bind(server, settings.listen)
        await server.start()
        cleanup.push_async_callback(server.stop, 1.0)
        cleanup.callback(router.close_all)
        settle_garbage_collection()
        status.ready()
        await unless_stopped(_run_all(loops), stop)


async def _meet(
    executors: list[ExecutorClient], settings: SchedulerSettings, cleanup: contextlib.AsyncExitStack
) -> tuple[KvPoolLayout, scheduler_pb2.DescribeResponse, list[StepChannel]]:
    """Learns what the executors serve, makes the pool, has them attach it, and opens a channel for steps to each."""
    timeout = settings.startup_timeout
    descriptions = list(await asyncio.gather(*(executor.describe(timeout) for executor in executors)))
    # An epoch names the pool: a late message of an older one is refused.
    layout = plan_pool(settings, descriptions, epoch=secrets.randbits(63))
    request = executor_pb2.AttachKvPoolRequest(
        epoch=layout.epoch, num_blocks=layout.num_blocks, block_size=layout.block_size
    )
    with contextlib.ExitStack() as handover:
        if descriptions[0].device == executor_pb2.DEVICE_CUDA:
            request.device_memory.SetInParent()
        else:
            _make_pool(settings, layout, request, cleanup, handover)
        await asyncio.gather(*(executor.attach(request, timeout) for executor in executors))
    channels: list[StepChannel] = []
    for executor in executors:
        channel = await executor.open_steps(settings.step_transport, timeout)
        cleanup.push_async_callback(channel.close)
        channels.append(channel)
    return layout, _describe(settings, layout, descriptions), channels


def _make_pool(
    settings: SchedulerSettings,
    layout: KvPoolLayout,
    request: executor_pb2.AttachKvPoolRequest,
    cleanup: contextlib.AsyncExitStack,
    handover: contextlib.ExitStack,
) -> None:
    """Creates the pool; `cleanup` unmaps it, and `handover` ends the offer of its descriptor."""
    if settings.kv_pool is not None:
        path = settings.kv_pool.absolute()
        pool = cleanup.enter_context(KvPool.create_file(path, layout))
        # Its content means nothing without the scheduler's block tables, which end with this process.
        cleanup.callback(pool.remove, path)
        request.path = str(path)
        return
    pool = cleanup.enter_context(KvPool.create_memfd(layout))
    request.handover_socket = str(handover.enter_context(offered("kv-pool", [pool.fd])))


def _make_scheduler(
    settings: SchedulerSettings, layout: KvPoolLayout, description: scheduler_pb2.DescribeResponse
) -> Scheduler:
    kv_cache = KvCache(
        layout.num_blocks,
        layout.block_size,
        num_lanes=len(settings.executors),
        prefix_caching=settings.enable_prefix_caching,
    )
    limits = SchedulerLimits(description.max_model_len, settings.max_num_seqs, settings.max_num_batched_tokens)
    return Scheduler(kv_cache, limits)


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


async def _run_all(loops: list[StepLoop]) -> None:
    """Runs the step loops; the first that fails ends them all."""
    try:
        async with asyncio.TaskGroup() as group:
            for loop in loops:
                group.create_task(loop.run())
    except* QuireError as failures:
        raise failures.exceptions[0] from None
