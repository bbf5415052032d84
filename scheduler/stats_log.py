"""A line in the log every ten seconds in which something was computed: throughput, requests, cache."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Final

from quire.scheduler.scheduler import Scheduler

logger = logging.getLogger(__name__)

# vLLM's.
_PERIOD_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class _Counts:
    """What only grows."""

    prompt_tokens: int
    generated_tokens: int
    prefix_queries: int
    prefix_hits: int
    preemptions: int


async def log_stats(scheduler: Scheduler, period_s: float = _PERIOD_S) -> None:
    """Runs until it is cancelled."""
    before, since = _count(scheduler), time.monotonic()
    while True:
        await asyncio.sleep(period_s)
        now, current = time.monotonic(), _count(scheduler)
        if current != before or scheduler.has_work:
            _log(scheduler, before, current, now - since)
        before, since = current, now


def _count(scheduler: Scheduler) -> _Counts:
    cache = scheduler.kv_cache
    return _Counts(
        scheduler.counts.num_prompt_tokens,
        scheduler.counts.num_generation_tokens,
        cache.num_queried_tokens,
        cache.num_hit_tokens,
        scheduler.num_preemptions,
    )


def _log(scheduler: Scheduler, before: _Counts, now: _Counts, seconds: float) -> None:
    pool = scheduler.kv_cache.pool
    queries = now.prefix_queries - before.prefix_queries
    fields = {
        "event": "stats",
        "prompt_tokens_per_s": round((now.prompt_tokens - before.prompt_tokens) / seconds, 1),
        "generated_tokens_per_s": round((now.generated_tokens - before.generated_tokens) / seconds, 1),
        "requests_running": scheduler.num_running,
        "requests_waiting": len(scheduler.waiting),
        "kv_cache_usage": round(pool.usage, 4),
        # Of the tokens that were looked up in this time; None if none were.
        "prefix_hit_rate": round((now.prefix_hits - before.prefix_hits) / queries, 4) if queries else None,
        "preemptions": now.preemptions - before.preemptions,
    }
    hits = "-" if fields["prefix_hit_rate"] is None else f"{fields['prefix_hit_rate']:.1%}"
    logger.info(
        "prompt %.1f tok/s, generated %.1f tok/s, %d running, %d waiting, KV cache %.1f %%, prefix hits %s%s",
        fields["prompt_tokens_per_s"],
        fields["generated_tokens_per_s"],
        fields["requests_running"],
        fields["requests_waiting"],
        100 * pool.usage,
        hits,
        f", {fields['preemptions']} preemptions" if fields["preemptions"] else "",
        extra=fields,
    )
