"""The state of the scheduler and of its sequences, as a message."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Final

from quire.scheduler.metrics import MetricStore
from quire.scheduler.monitor.block_tables import BlockTables
from quire.scheduler.monitor.loads import loads_of
from quire.scheduler.scheduler import Scheduler
from quire.scheduler.sequence import Sequence, SequenceStatus
from quire.v1 import monitor_pb2

# What bounds a message, however long the queue and the contexts are: sequences, and entries of block tables.
MAX_SEQUENCES: Final = 512
MAX_BLOCK_IDS: Final = 65_536


class StateMaker:
    """Reads a scheduler."""

    def __init__(self, scheduler: Scheduler, metrics: MetricStore, model: str) -> None:
        self._scheduler = scheduler
        self._metrics = metrics
        self._model = model
        self._tables = BlockTables()

    def loads(self) -> monitor_pb2.Loads:
        """See the proto."""
        return loads_of(self._scheduler, self._model)

    def state(self, *, with_tables: bool) -> monitor_pb2.ServerState:
        """All but the map of the KV pool."""
        scheduler, cache, counts = self._scheduler, self._scheduler.kv_cache, self._scheduler.counts
        state = monitor_pb2.ServerState(
            loads=self.loads(),
            num_prompt_tokens=counts.num_prompt_tokens,
            num_generation_tokens=counts.num_generation_tokens,
            num_preemptions=scheduler.num_preemptions,
            prefix_cache_queries=cache.num_queried_tokens,
            prefix_cache_hits=cache.num_hit_tokens,
            num_steps=counts.num_steps,
            num_copied_blocks=cache.num_copies,
            num_lost_executors=scheduler.num_lost_lanes,
            time_to_first_token=self._histogram("time_to_first_token_seconds"),
            inter_token_latency=self._histogram("inter_token_latency_seconds"),
            scheduler_start_ns=int(self._metrics.started_s * 1e9),
        )
        now = time.monotonic_ns()
        room = MAX_BLOCK_IDS if with_tables else 0
        if with_tables:
            self._tables.begin()
        for sequence in itertools.islice(_sequences(scheduler), MAX_SEQUENCES):
            num_blocks = len(sequence.blocks)
            table = self._tables.column(sequence) if 0 < num_blocks <= room else b""
            room -= num_blocks if table else 0
            _add(state, sequence, table, now)
        return state

    def forget(self) -> None:
        """Nobody looks any more: lets go of what only the next state needs."""
        self._tables = BlockTables()

    def _histogram(self, name: str) -> monitor_pb2.Histogram:
        """What gateways have reported until a second ago."""
        histogram = self._metrics.histogram(name)
        return monitor_pb2.Histogram(bounds=histogram.bounds, counts=histogram.counts, sum=histogram.sum)


def _sequences(scheduler: Scheduler) -> Iterator[Sequence]:
    """Those that run, then those that do not, each in the order of their arrival."""
    yield from scheduler.running
    for request in scheduler.requests.values():
        for sequence in request.sequences:
            if sequence.status is not SequenceStatus.RUNNING and not sequence.is_finished:
                yield sequence


def _add(state: monitor_pb2.ServerState, sequence: Sequence, table: bytes, now_ns: int) -> None:
    request = sequence.request
    state.sequences.add(
        request_id=request.request_id,
        sequence_index=sequence.index,
        status=sequence.status.value,
        num_tokens=sequence.num_tokens,
        num_computed_tokens=sequence.num_computed_tokens,
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_cached_tokens=request.num_cached_tokens or 0,
        tenant=request.tenant.name,
        executor=sequence.lane,
        age_s=(now_ns - request.submitted_ns) / 1e9,
        block_ids=table,
    )
