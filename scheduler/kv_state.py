"""What an onlooker may know of the pool's blocks and of the block tables, at one moment between steps."""

from __future__ import annotations

from quire.columns import pack_u32, pack_u64
from quire.internal.v1 import scheduler_pb2
from quire.scheduler.scheduler import Scheduler


def describe_kv_cache(scheduler: Scheduler, *, with_blocks: bool) -> scheduler_pb2.GetKvCacheStateResponse:
    """Counts and tables; with a row for each block too, if wanted (O(pool))."""
    cache = scheduler.kv_cache
    live = [sequence for request in scheduler.requests.values() for sequence in request.sequences]
    blocks = cache.pool.blocks if with_blocks else []
    return scheduler_pb2.GetKvCacheStateResponse(
        num_blocks=cache.pool.num_blocks,
        block_size=cache.block_size,
        free_blocks=cache.pool.num_free,
        cached_blocks=cache.pool.num_cached,
        held_blocks=cache.pool.num_held,
        sequences=[
            scheduler_pb2.SequenceBlocks(
                request_id=sequence.request.request_id,
                sequence_index=sequence.index,
                status=sequence.status.value,
                num_tokens=sequence.num_tokens,
                num_computed_tokens=sequence.num_computed_tokens,
                block_ids=pack_u32(block.id for block in sequence.blocks),
            )
            for sequence in live
            if not sequence.is_finished
        ],
        num_preemptions=scheduler.num_preemptions,
        prefix_cache_queries=cache.num_queried_tokens,
        prefix_cache_hits=cache.num_hit_tokens,
        num_requests_waiting=len(scheduler.waiting),
        num_requests_running=len(scheduler.running),
        num_copied_blocks=cache.num_copies,
        num_lost_executors=scheduler.num_lost_lanes,
        num_restored_blocks=cache.num_restored,
        ref_counts=pack_u32([block.ref_count for block in blocks]),
        retiring=pack_u32([block.retiring for block in blocks]),
        content_numbers=pack_u64([block.prefix.number if block.prefix else 0 for block in blocks]),
        num_usable_blocks=cache.pool.num_usable,
    )
