"""Random histories of a scheduler with fake executors: whatever happens, blocks add up and outputs are the truth."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.fake_executor import true_embedding
from support.scheduling import Bench

from quire.errors import InvalidRequestError
from quire.v1 import generate_pb2

WEIGHTS = {"": 1.0, "heavy": 3.0, "light": 0.5}
TENANTS = list(WEIGHTS)
NONE = generate_pb2.POOLING_TYPE_UNSPECIFIED
LAST, MEAN = generate_pb2.POOLING_TYPE_LAST, generate_pb2.POOLING_TYPE_MEAN
# Many histories, on machines that are busy with others.
pytestmark = pytest.mark.timeout(600)

MAX_IN_FLIGHT = 3


class RandomHistories(RuleBasedStateMachine):
    """Arrivals, aborts, pauses, forks, preemptions and lost executors in any order, with steps in flight."""

    @initialize(
        num_blocks=st.integers(8, 24),
        block_size=st.sampled_from([1, 2, 4]),
        budget=st.sampled_from([1, 3, 8, 40]),
        max_num_seqs=st.integers(1, 6),
        num_lanes=st.integers(1, 2),
        prefix_caching=st.booleans(),
        policy=st.sampled_from(["priority", "fair"]),
    )
    def start(self, num_blocks, block_size, budget, max_num_seqs, num_lanes, prefix_caching, policy):
        self.bench = Bench(
            num_blocks=num_blocks,
            block_size=block_size,
            max_num_batched_tokens=budget,
            max_num_seqs=max_num_seqs,
            max_model_len=num_blocks * block_size,
            num_lanes=num_lanes,
            prefix_caching=prefix_caching,
            policy=policy,
        )
        self.aborted = set()
        self.policy = policy
        self.num_losses = 0
        self.capacity = num_blocks * block_size

    @rule(
        shared=st.integers(0, 12),
        own=st.lists(st.integers(0, 3), min_size=1, max_size=6),
        n=st.sampled_from([1, 1, 2, 4]),
        max_tokens=st.integers(1, 12),
        stop=st.sampled_from([(), (7,), (1, 2, 3, 4, 5)]),
        extra_key=st.sampled_from([b"", b"tenant"]),
        priority=st.sampled_from([0, 0, 1, -1]),
        prompt_logprobs=st.sampled_from([None, None, 3]),
        pooling=st.sampled_from([NONE, NONE, NONE, LAST, MEAN]),
        tenant=st.sampled_from(TENANTS),
    )
    def submit(self, shared, own, n, max_tokens, stop, extra_key, priority, prompt_logprobs, pooling, tenant):
        prompt = ([9, 8, 7] * shared)[:shared] + own
        if len(prompt) < self.capacity:
            max_tokens = min(max_tokens, self.capacity - len(prompt))
            self.bench.submit(
                prompt,
                n=1 if pooling else n,
                max_tokens=max_tokens,
                stop=stop,
                extra_key=extra_key,
                priority=priority if self.policy == "priority" else 0,
                prompt_logprobs=None if pooling else prompt_logprobs,
                pooling=pooling,
                tenant=tenant,
                weight=WEIGHTS[tenant],
            )

    @rule(
        shared=st.integers(0, 12),
        own=st.lists(st.integers(0, 3), min_size=1, max_size=6),
        width=st.integers(1, 4),
        n=st.integers(1, 2),
        max_tokens=st.integers(1, 12),
        stop=st.sampled_from([(), (7,), (1, 2, 3, 4, 5)]),
        length_penalty=st.sampled_from([0.0, 1.0, -0.5]),
        early_stopping=st.integers(0, 2),
        tenant=st.sampled_from(TENANTS),
    )
    def submit_beams(self, shared, own, width, n, max_tokens, stop, length_penalty, early_stopping, tenant):
        prompt = ([9, 8, 7] * shared)[:shared] + own
        if len(prompt) >= self.capacity:
            return
        max_tokens = min(max_tokens, self.capacity - len(prompt))
        try:
            self.bench.submit_beams(
                prompt,
                width,
                n=min(n, width),
                max_tokens=max_tokens,
                stop=stop,
                length_penalty=length_penalty,
                early_stopping=early_stopping,
                tenant=tenant,
                weight=WEIGHTS[tenant],
            )
        except InvalidRequestError as error:  # might not fit
            assert error.field in ("best_of", "max_tokens")

    @precondition(lambda self: self.bench.scheduler.requests)
    @rule(data=st.data())
    def abort(self, data):
        request = data.draw(st.sampled_from(list(self.bench.scheduler.requests.values())))
        everything = [sequence.index for sequence in request.sequences]
        indices = data.draw(st.sampled_from([[], [0], [everything[-1]]]))
        # A beam search ends as a whole.
        aborted = everything if request.params.use_beam_search else indices or everything
        self.aborted.update((request.key, index) for index in aborted)
        self.bench.scheduler.abort(request.key, indices)

    @precondition(lambda self: self.bench.scheduler.requests)
    @rule(data=st.data(), paused=st.booleans())
    def set_flow(self, data, paused):
        key = data.draw(st.sampled_from(list(self.bench.scheduler.requests)))
        if paused:
            self.bench.scheduler.pause(key)
        else:
            self.bench.scheduler.resume(key)

    @rule(lane=st.integers(0, 1))
    def plan(self, lane):
        lane %= len(self.bench.lanes)
        if self.bench.in_flight(lane) < MAX_IN_FLIGHT:
            self.bench.plan(lane)

    @rule(lane=st.integers(0, 1))
    def compute(self, lane):
        lane %= len(self.bench.lanes)
        if self.bench.lanes[lane].sent:
            self.bench.compute(lane)

    @rule(lane=st.integers(0, 1))
    def deliver(self, lane):
        lane %= len(self.bench.lanes)
        if self.bench.lanes[lane].computed:
            self.bench.deliver(lane)

    @precondition(lambda self: self.num_losses < 4)  # five in a row would end requests
    @rule(lane=st.integers(0, 1))
    def lose(self, lane):
        lane %= len(self.bench.lanes)
        if lane in self.bench.scheduler.live_lanes:
            self.num_losses += 1
            assert not self.bench.lose(lane).failed

    @rule(lane=st.integers(0, 1))
    def replace(self, lane):
        """By an executor that knows nothing, once the steps in flight have ended."""
        lane %= len(self.bench.lanes)
        while self.bench.in_flight(lane):
            if self.bench.lanes[lane].sent:
                self.bench.compute(lane)
            self.bench.deliver(lane)
        self.bench.replace(lane)

    @rule(lane=st.integers(0, 1))
    def regain(self, lane):
        self.bench.scheduler.regain_lane(lane % len(self.bench.lanes))

    @invariant()
    def blocks_add_up(self):
        if hasattr(self, "bench"):
            self.bench.scheduler.check_integrity(deep=True)

    def teardown(self):
        if not hasattr(self, "bench"):
            return
        for key in list(self.bench.scheduler.requests):
            self.bench.scheduler.resume(key)
        for lane in range(len(self.bench.lanes)):
            self.bench.scheduler.regain_lane(lane)
        self.bench.drain()
        self.bench.check_idle()
        for entry in self.bench.submitted.values():
            pooling = entry.request.pooling
            if pooling and entry.embedding is not None:
                assert entry.embedding == true_embedding(entry.prompt, pooling)
                assert entry.outputs == {0: []}
                continue
            for index, output in entry.outputs.items():
                truth = entry.truth(index)
                if index in entry.finished:
                    assert output == truth
                else:
                    assert (entry.request.key, index) in self.aborted, "neither finished nor aborted"
                    assert output == truth[: len(output)]


TestRandomHistories = RandomHistories.TestCase
TestRandomHistories.settings = settings(max_examples=120, stateful_step_count=60, deadline=None)
