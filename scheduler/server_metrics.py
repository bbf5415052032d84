"""The figures of the server at this moment: the sums of the store, and what the scheduler and its cache count."""

from __future__ import annotations

from collections.abc import Iterator

from quire.internal.v1 import metrics_pb2
from quire.scheduler.metrics import MetricStore
from quire.scheduler.outputs import OutputRouter
from quire.scheduler.scheduler import Scheduler
from quire.scheduler.swap_tier import SwapTier
from quire.scheduler.tenants import TenantAccounts


def server_metrics(
    store: MetricStore, scheduler: Scheduler, router: OutputRouter, *, with_tenants: bool
) -> metrics_pb2.MetricValues:
    """All of them; O(running requests + tenants), so some 0.1 ms."""
    values = store.values(with_tenants=with_tenants)
    for name, value in _figures(scheduler):
        values.numbers.add(name=name, value=value)
    values.numbers.add(name="gateways", value=router.num_gateways)
    values.numbers.add(name="scheduler_start_time_seconds", value=store.started_s)
    pool = scheduler.kv_cache.pool
    for state, count in (("free", pool.num_free), ("cached", pool.num_cached), ("held", pool.num_held)):
        values.numbers.add(name="kv_blocks", labels=[state], value=count)
    if with_tenants:
        for tenant, num_running, num_waiting in _tenants(store, scheduler.tenants):
            values.numbers.add(name="tenant_num_requests_running", labels=[tenant], value=num_running)
            values.numbers.add(name="tenant_num_requests_waiting", labels=[tenant], value=num_waiting)
    return values


def _figures(scheduler: Scheduler) -> Iterator[tuple[str, float]]:
    cache = scheduler.kv_cache
    yield "num_requests_running", scheduler.num_running
    yield "num_requests_waiting", len(scheduler.waiting)
    yield "num_requests_paused", sum(request.is_paused for request in scheduler.requests.values())
    yield "kv_cache_usage_perc", cache.pool.usage
    yield "prefix_cache_queries", cache.num_queried_tokens
    yield "prefix_cache_hits", cache.num_hit_tokens
    yield from _swap_figures(cache.swap)
    yield "num_preemptions", scheduler.num_preemptions
    yield "copied_blocks", cache.num_copies
    yield "restored_blocks", cache.num_restored
    yield "lost_executors", scheduler.num_lost_lanes
    yield "executors", len(cache.lanes)
    yield "live_executors", len(scheduler.live_lanes)


def _swap_figures(swap: SwapTier | None) -> Iterator[tuple[str, float]]:
    """Zeros without a tier, as counters are there from the start."""
    yield "external_prefix_cache_queries", swap.num_queried_tokens if swap else 0
    yield "external_prefix_cache_hits", swap.num_hit_tokens if swap else 0
    yield "cpu_cache_usage_perc", 1 - swap.pool.num_free / swap.pool.num_usable if swap and swap.pool.num_usable else 0
    yield "swapped_out_blocks", swap.num_swapped_out if swap else 0
    yield "swapped_in_blocks", swap.num_swapped_in if swap else 0


def _tenants(store: MetricStore, accounts: TenantAccounts) -> list[tuple[str, int, int]]:
    """Of each tenant that is shown: its name, sequences that run, and sequences that wait."""
    counts: dict[str, list[int]] = {}
    for account in accounts.active:
        if account.name:
            running_waiting = counts.setdefault(store.tenant_label(account.name), [0, 0])
            running_waiting[0] += account.num_running
            running_waiting[1] += account.num_waiting
    for name in store.tenants:  # those that have nothing now
        counts.setdefault(name, [0, 0])
    return [(name, num_running, num_waiting) for name, (num_running, num_waiting) in counts.items()]
