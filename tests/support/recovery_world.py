"""Gateways, a scheduler and executors that may die at any moment, in one thread and without a clock.

Real: the scheduler's logic, its service (Submit, Abort, SetFlow), its output streams, the journal, and every message.
Models: an executor whose KV notices every block that is trusted wrongly (`fake_executor.py`), and what is left of a
gateway without its sockets (`recovery_gateway.py`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from support.fake_executor import FakeExecutor
from support.recovery_gateway import Client, Gateway
from support.recovery_pool import Pool

from quire.config import SchedulingPolicy
from quire.internal.v1 import executor_pb2, scheduler_pb2
from quire.scheduler.admission import Admission
from quire.scheduler.kv_cache import KvCache
from quire.scheduler.metrics import MetricStore
from quire.scheduler.outputs import OutputRouter
from quire.scheduler.request_checks import SchedulerLimits
from quire.scheduler.scheduler import Scheduler
from quire.scheduler.service import SchedulerService
from quire.scheduler.step_loop import MAX_STEPS_IN_FLIGHT, Work
from quire.scheduler.step_plan import StepPlan


class RefusedError(Exception):
    """The scheduler refuses a request."""


class _Context:
    """What a servicer gets from gRPC."""

    async def abort(self, code: Any, details: str, trailing_metadata: Any) -> None:
        raise RefusedError(details)


@dataclass
class Lane:
    """An executor, and what is between it and the scheduler."""

    index: int
    executor: FakeExecutor
    sent: deque[StepPlan] = field(default_factory=deque)
    computed: deque[tuple[StepPlan, executor_pb2.StepResult]] = field(default_factory=deque)
    is_live: bool = True

    @property
    def num_in_flight(self) -> int:
        return len(self.sent) + len(self.computed)


@dataclass(frozen=True)
class Sizes:
    """What a scheduler is started with."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_lanes: int
    prefix_caching: bool
    policy: SchedulingPolicy = "fcfs"

    @property
    def capacity(self) -> int:
        """The longest sequence, in tokens."""
        return self.num_blocks * self.block_size


class World:
    """All processes. The pool and its journal outlive every one of them: the supervisor has their descriptor."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.pool = Pool(sizes.num_blocks, sizes.block_size)
        self.lanes = [Lane(index, FakeExecutor(self.pool.memory)) for index in range(sizes.num_lanes)]
        self.gateways: list[Gateway] = []
        self._gateway_numbers = itertools.count()
        self.epoch = 0
        # For what waits in a gateway; it never runs longer than one thing needs.
        self.loop = asyncio.new_event_loop()
        self.start_scheduler()

    def close(self) -> None:
        self.loop.close()

    # Executors

    def crash_executor(self, lane: Lane, num_computed: int, *, torn: bool) -> None:
        """It dies after up to `num_computed` steps, whose results nobody gets, or in the middle of the next.

        A torn step leaves garbage in every block that it was to write.
        """
        for _ in range(num_computed):
            self.compute(lane)
        if torn and self.compute(lane):
            self.pool.spoil_written()
        self._replace_executor(lane)
        lane.is_live = False
        # No plan is blamed: in this world nobody's request kills executors.
        self.router.publish(self.scheduler.lose_lane(lane.index))

    def start_executor(self, lane: Lane) -> None:
        """It has attached the pool."""
        lane.is_live = True
        self.scheduler.regain_lane(lane.index)

    def upgrade_executor(self, lane: Lane) -> None:
        """Steps in flight end; then a new executor takes the place of the old one."""
        while lane.num_in_flight:
            self.compute(lane)
            self.acknowledge(lane)
        self.scheduler.vacate_lane(lane.index)
        self._replace_executor(lane)

    def _replace_executor(self, lane: Lane) -> None:
        """Whatever was in flight is void, and a fresh executor knows no sequence."""
        lane.executor, lane.is_live = FakeExecutor(self.pool.memory), True
        lane.sent.clear()
        lane.computed.clear()

    # The scheduler

    def start_scheduler(self) -> None:
        """One that knows nothing but what is in the pool."""
        sizes = self.sizes
        self.epoch += 1
        if not sizes.prefix_caching:  # as `open_pool`
            self.pool.journal.wipe()
        cache = KvCache(
            sizes.num_blocks,
            sizes.block_size,
            num_lanes=sizes.num_lanes,
            prefix_caching=sizes.prefix_caching,
            journal=self.pool.journal,
        )
        cache.restore()
        limits = SchedulerLimits(sizes.capacity, sizes.max_num_seqs, sizes.max_num_batched_tokens, sizes.policy)
        self.scheduler = Scheduler(cache, limits)
        self.router = OutputRouter()
        admission = Admission(self.scheduler, max_queued_requests=1000)
        description = scheduler_pb2.DescribeResponse(executors=[executor_pb2.ExecutorDescription()])
        metrics = MetricStore(sizes.capacity)
        self.service = SchedulerService(description, self.scheduler, admission, self.router, Work(), [], metrics)

    def crash_scheduler(self, num_computed: int, torn_byte: int | None) -> None:
        """All that it knew is lost. Executors compute up to `num_computed` steps more before they let go of the pool.

        `torn_byte` is in a record that was being written, whose block is free then.
        """
        for lane in self.lanes:
            for _ in range(num_computed):
                self.compute(lane)
            self._replace_executor(lane)
        self.pool.check_journal()
        if torn_byte is not None:
            self.pool.tear_journal(torn_byte)
        for gateway in self.gateways:
            gateway.outputs = None
        self.start_scheduler()
        self.pool.check_journal()

    # Gateways

    def add_gateway(self) -> Gateway:
        async def set_flow(key: int, paused: bool) -> None:
            if gateway.outputs is not None:
                message = scheduler_pb2.SetFlowRequest(gateway_id=gateway.id, request_key=key, paused=paused)
                await self.service.SetFlow(message, _Context())

        gateway = Gateway(f"gateway-{next(self._gateway_numbers)}", set_flow, self.call)
        self.gateways.append(gateway)
        self.connect(gateway)
        return gateway

    def connect(self, gateway: Gateway) -> None:
        """Opens the output stream, then submits again what has not ended (`SchedulerClient._restore`)."""
        if self.router.is_open(gateway.id):
            self.scheduler.abort_gateway(gateway.id)
        gateway.outputs = self.router.open(gateway.id)
        for stream in gateway.running.all():
            stream.end_complete(self.sizes.capacity)
            if stream.is_unfinished:
                self.call(self.service.Submit(stream.next_attempt(), _Context()))
                stream.flow.restart()

    def disconnect(self, gateway: Gateway) -> None:
        """The stream ends, and the scheduler sees it (`SchedulerService.StreamOutputs`)."""
        if gateway.outputs is not None and self.router.close(gateway.id, gateway.outputs):
            self.scheduler.abort_gateway(gateway.id)
        gateway.outputs = None

    def submit(self, gateway: Gateway, request: scheduler_pb2.SubmitRequest, num_attempts: int) -> None:
        """The answers to all attempts but the last are lost. Raises RefusedError for what might never fit."""
        client = gateway.accept(request)
        try:
            for _ in range(num_attempts):
                self.call(self.service.Submit(client.stream.next_attempt(), _Context()))
        except RefusedError:
            gateway.release(client)
            raise

    def give_up(self, gateway: Gateway, client: Client, indices: list[int]) -> None:
        """A client wants nothing more of these sequences."""
        for index in indices:
            client.stream.abandon(index)
        client.ended.update(indices)
        if client.is_done:
            gateway.release(client)
        if gateway.outputs is not None:
            named = [] if client.is_done else indices
            message = scheduler_pb2.AbortRequest(
                gateway_id=gateway.id, request_key=client.stream.key, sequence_indices=named
            )
            self.call(self.service.Abort(message, _Context()))

    # Steps

    def plan(self, lane: Lane) -> bool:
        """Plans a step and sends it, if there is something to compute and room for a step in flight."""
        if not lane.is_live or lane.num_in_flight >= MAX_STEPS_IN_FLIGHT:
            return False
        plan = self.scheduler.schedule(lane.index)
        if plan is not None:
            lane.sent.append(plan)
        return plan is not None

    def compute(self, lane: Lane) -> bool:
        """Has the executor compute the oldest plan that it was sent. What it writes must be in no journal."""
        if not lane.is_live or not lane.sent:
            return False
        plan = lane.sent.popleft()
        message = executor_pb2.StepPlan.FromString(plan.to_proto(self.epoch).SerializeToString())
        self.pool.written.clear()
        lane.computed.append((plan, lane.executor.execute(message)))
        self.pool.check_written()
        return True

    def acknowledge(self, lane: Lane) -> bool:
        """Takes in the oldest result."""
        if not lane.computed:
            return False
        self.router.publish(self.scheduler.update_from_output(*lane.computed.popleft()))
        return True

    def transmit(self, gateway: Gateway) -> bool:
        """A gateway takes what waits for it."""
        message = gateway.outputs.take() if gateway.outputs is not None else None
        if message is None:
            return False
        gateway.running.take(scheduler_pb2.StepOutputs.FromString(message.SerializeToString()))
        return True

    def read(self, gateway: Gateway) -> bool:
        """All clients of a gateway take what waits for them."""
        read = [self.loop.run_until_complete(gateway.read(client)) for client in gateway.clients.copy()]
        return any(read)

    def work(self) -> bool:
        """Everybody does one thing, if there is one; says whether anybody did."""
        done = [act(lane) for act in (self.plan, self.compute, self.acknowledge) for lane in self.lanes]
        done += [act(gateway) for act in (self.transmit, self.read) for gateway in self.gateways]
        return any(done)

    @staticmethod
    def call(coroutine: Coroutine[Any, Any, Any]) -> None:
        """Runs what does not wait for anything."""
        try:
            coroutine.send(None)
        except StopIteration:
            return
        raise AssertionError(f"{coroutine} waits")
