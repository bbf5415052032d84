"""A scheduler with fake executors, driven by hand: every step of the protocol, no process and no clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from support.fake_executor import FakeExecutor, FakeKvMemory, true_hypotheses, true_output, true_prompt_logprobs

from quire.config import SchedulingPolicy
from quire.internal.v1 import executor_pb2, scheduler_pb2
from quire.kv_journal import KvJournal
from quire.scheduler.beam_search import BeamSearch
from quire.scheduler.kv_cache import KvCache
from quire.scheduler.outputs import StepEvents
from quire.scheduler.prefix_cache import extra_key_digest
from quire.scheduler.request_checks import SchedulerLimits
from quire.scheduler.scheduler import Scheduler
from quire.scheduler.sequence import Request, RequestKey, Sequence
from quire.scheduler.step_plan import StepPlan
from quire.scheduler.swap_tier import SwapTier
from quire.v1 import generate_pb2

EPOCH = 7


@dataclass
class Submitted:
    """A request and what became of it."""

    request: Request
    prompt: list[int]
    max_tokens: int
    stop: frozenset[int]
    outputs: dict[int, list[int]] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    # As a gateway takes them: what it has, it drops.
    prompt_logprobs: list[float] = field(default_factory=list)
    embedding: bytes | None = None
    failure: str | None = None

    def truth(self, index: int) -> list[int]:
        params = self.request.params
        if params.use_beam_search:
            search = BeamSearch(
                params.best_of, self.stop, 0, self.max_tokens, params.length_penalty, params.early_stopping
            )
            return list(true_hypotheses(self.prompt, search)[index].token_ids)
        return true_output(self.prompt, index, self.max_tokens, self.stop)

    def check_prompt_logprobs(self) -> None:
        """Those of the whole prompt come before the first token."""
        wanted = self.request.params.HasField("prompt_logprobs")
        assert self.prompt_logprobs == (true_prompt_logprobs(self.prompt) if wanted else [])

    @property
    def sequences(self) -> list[Sequence]:
        return self.request.sequences


@dataclass
class _Lane:
    executor: FakeExecutor
    sent: deque[StepPlan] = field(default_factory=deque)
    computed: deque[tuple[StepPlan, executor_pb2.StepResult]] = field(default_factory=deque)


class Bench:
    """Scheduler, lanes and the requests submitted to them."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_num_seqs: int = 16,
        max_num_batched_tokens: int = 64,
        max_model_len: int = 64,
        num_lanes: int = 1,
        prefix_caching: bool = True,
        policy: SchedulingPolicy = "fcfs",
        memory: FakeKvMemory | None = None,
        journal: KvJournal | None = None,
        num_swap_blocks: int = 0,
        max_moves: int = 4,
    ) -> None:
        """With a `memory` and its `journal`: of a scheduler that comes after another one."""
        swap = SwapTier(num_swap_blocks, max_moves=max_moves, num_lanes=num_lanes) if num_swap_blocks else None
        cache = KvCache(
            num_blocks, block_size, num_lanes=num_lanes, prefix_caching=prefix_caching, journal=journal, swap=swap
        )
        cache.restore()
        limits = SchedulerLimits(max_model_len, max_num_seqs, max_num_batched_tokens, policy)
        self.scheduler = Scheduler(cache, limits)
        self.memory = memory or FakeKvMemory(block_size)
        self.lanes = [_Lane(FakeExecutor(self.memory)) for _ in range(num_lanes)]
        self.submitted: dict[RequestKey, Submitted] = {}
        self.plans: list[StepPlan] = []
        # The plans as executors got them.
        self.messages: list[executor_pb2.StepPlan] = []

    def submit(
        self,
        prompt: list[int],
        *,
        max_tokens: int = 8,
        n: int = 1,
        stop: tuple[int, ...] = (),
        extra_key: bytes = b"",
        priority: int = 0,
        pooling: generate_pb2.PoolingType.ValueType = generate_pb2.POOLING_TYPE_UNSPECIFIED,
        tenant: str = "",
        weight: float = 1.0,
        attempt: int = 0,
        **params: Any,
    ) -> Submitted:
        message = generate_pb2.SamplingParams(n=n, max_tokens=max_tokens, stop_token_ids=stop, **params)
        key = RequestKey("gateway", len(self.submitted))
        request = Request(
            key,
            f"request-{key.number}",
            attempt,
            message,
            frozenset(),
            extra_key_digest(extra_key),
            self.scheduler.tenants.of(scheduler_pb2.Tenant(name=tenant, weight=weight)),
            priority=priority,
            pooling=pooling,
        )
        entry = Submitted(request, prompt, max_tokens, frozenset(stop), {i: [] for i in range(n)})
        self.scheduler.add_request(request, prompt, {i: [] for i in range(n)})
        self.submitted[key] = entry
        return entry

    def submit_beams(
        self, prompt: list[int], width: int, *, n: int = 1, length_penalty: float = 1.0, **params: Any
    ) -> Submitted:
        """A beam search."""
        return self.submit(prompt, n=n, best_of=width, use_beam_search=True, length_penalty=length_penalty, **params)

    def plan(self, lane: int = 0) -> StepPlan | None:
        """Plans a step and sends it, if the lane has an executor."""
        plan = self.scheduler.schedule(lane) if lane in self.scheduler.live_lanes else None
        if plan is not None:
            self.lanes[lane].sent.append(plan)
            self.plans.append(plan)
        return plan

    def compute(self, lane: int = 0) -> None:
        """Has the executor compute the oldest plan it was sent."""
        plan = self.lanes[lane].sent.popleft()
        message = executor_pb2.StepPlan.FromString(plan.to_proto(EPOCH).SerializeToString())
        self.messages.append(message)
        self.lanes[lane].computed.append((plan, self.lanes[lane].executor.execute(message)))

    def deliver(self, lane: int = 0) -> None:
        """Takes in the oldest result."""
        plan, result = self.lanes[lane].computed.popleft()
        events = self.scheduler.update_from_output(plan, result)
        for request, scored in events.prompt_logprobs:
            known = self.submitted[request.key].prompt_logprobs
            assert scored.start <= len(known) + 1, "positions of a prompt arrive in order"
            known += [position.logprob for position in scored.positions[len(known) + 1 - scored.start :]]
        for request, values in events.embeddings:
            assert self.submitted[request.key].embedding is None, "an embedding comes once"
            self.submitted[request.key].embedding = values
        for sequence, position, token_id in zip(events.sequences, events.positions, events.token_ids, strict=True):
            output = self.submitted[sequence.request.key].outputs[sequence.index]
            assert position == len(output), "tokens arrive in order"
            self.submitted[sequence.request.key].check_prompt_logprobs()
            output.append(token_id)
        for sequence in events.finished:
            self.submitted[sequence.request.key].finished.add(sequence.index)

    def step(self, lane: int = 0) -> StepPlan | None:
        """A whole step without overlap."""
        plan = self.plan(lane)
        if plan is not None:
            self.compute(lane)
            self.deliver(lane)
        return plan

    def lose(self, lane: int = 0) -> StepEvents:
        """The executor dies: its answers are lost, and what it had not computed it has half written."""
        memory, dying = self.memory, self.lanes[lane]
        pending = [plan for plan, _ in dying.computed] + list(dying.sent)
        slots = (memory.slots, memory.host_slots)
        before = [dict(values) for values in slots]
        for plan in dying.sent:
            dying.executor.execute(plan.to_proto(EPOCH))
        for values, old in zip(slots, before, strict=True):
            for place in [place for place, value in values.items() if old.get(place) != value]:
                values[place] = b"torn"
        self.lanes[lane] = _Lane(FakeExecutor(memory))
        events = self.scheduler.lose_lane(lane, pending[0] if pending else None)
        for request, reason in events.failed:
            self.submitted[request.key].failure = reason
        return events

    def replace(self, lane: int = 0) -> None:
        """Another executor takes over a lane that has nothing in flight."""
        assert not self.in_flight(lane)
        self.lanes[lane] = _Lane(FakeExecutor(self.memory))
        self.scheduler.vacate_lane(lane)

    def in_flight(self, lane: int) -> int:
        return len(self.lanes[lane].sent) + len(self.lanes[lane].computed)

    def drain(self, *, overlap: int = 2, max_steps: int = 10_000) -> None:
        """Steps until nothing is left to do, with up to `overlap` steps in flight."""
        for _ in range(max_steps):
            progressed = False
            for lane in range(len(self.lanes)):
                if self.in_flight(lane) < overlap and self.plan(lane) is not None:
                    progressed = True
                    continue
                if self.in_flight(lane):
                    if self.lanes[lane].sent:
                        self.compute(lane)
                    self.deliver(lane)
                    progressed = True
            if not progressed:
                return
        raise AssertionError(f"not done after {max_steps} steps: {self.scheduler.requests}")

    def check_idle(self) -> None:
        """Everything ended and every block came back."""
        assert not self.scheduler.requests
        self.scheduler.check_integrity(deep=True)
        assert self.scheduler.kv_cache.pool.num_held == 0
        if self.scheduler.kv_cache.swap is not None:
            assert self.scheduler.kv_cache.swap.pool.num_held == 0
