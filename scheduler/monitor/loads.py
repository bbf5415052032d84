"""How busy the scheduler is, in numbers that it has anyway."""

from __future__ import annotations

import time

from quire.scheduler.scheduler import Scheduler
from quire.v1 import monitor_pb2


def loads_of(scheduler: Scheduler, model: str) -> monitor_pb2.Loads:
    """Now; it takes microseconds."""
    cache = scheduler.kv_cache
    pool = cache.pool
    return monitor_pb2.Loads(
        time_ns=time.time_ns(),
        model=model,
        num_requests_running=scheduler.num_running,
        num_requests_waiting=len(scheduler.waiting),
        num_waiting_tokens=scheduler.waiting.num_prompt_tokens,
        max_num_seqs=scheduler.limits.max_num_seqs,
        num_executors=len(cache.lanes),
        num_live_executors=len(scheduler.live_lanes),
        block_size=cache.block_size,
        num_blocks=pool.num_blocks,
        free_blocks=pool.num_free,
        cached_blocks=pool.num_cached,
        held_blocks=pool.num_held,
        kv_cache_usage=pool.usage,
    )
