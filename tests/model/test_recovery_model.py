"""Every accepted request's tokens are exactly the deterministic ones, whoever dies and whenever.

The state machine of docs/recovery_model.md: its rules are that specification's actions, its checks the invariants.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.recovery_world import RefusedError, Sizes, World

from quire.columns import pack_u32
from quire.internal.v1 import scheduler_pb2
from quire.v1 import generate_pb2

# Many histories, on machines that are busy with others.
pytestmark = pytest.mark.timeout(600)

LANES = st.integers(0, 1)
EOS = 11
STEP = ["plan", "compute", "acknowledge"]

SIZES = st.builds(
    Sizes,
    num_blocks=st.sampled_from([16, 24, 40]),
    block_size=st.sampled_from([1, 2, 4]),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.sampled_from([3, 8, 40]),
    num_lanes=st.integers(1, 2),
    prefix_caching=st.sampled_from([True, True, True, False]),
    policy=st.sampled_from(["fcfs", "fair", "priority"]),
)
# Several blocks of the smallest size that requests share, and then part.
PROMPTS = st.builds(
    lambda shared, own: ([9, 8, 7] * 4)[:shared] + own,
    st.integers(0, 12),
    st.lists(st.integers(0, 3), min_size=1, max_size=6),
)
MAX_TOKENS = st.sampled_from([16, 24, 5, 1])
ROUNDS = st.integers(0, 8)
PLANS = st.sampled_from([2, 1, 0])


def _request(prompt, params, **fields):
    indices = range(params.n)
    return scheduler_pb2.SubmitRequest(
        prompt_token_ids=pack_u32(prompt),
        sequences=[scheduler_pb2.SequenceState(index=index) for index in indices],
        sampling_params=params,
        eos_token_ids=pack_u32([EOS]),
        **fields,
    )


SAMPLED = st.builds(
    _request,
    PROMPTS,
    st.builds(
        generate_pb2.SamplingParams,
        n=st.sampled_from([1, 1, 2, 4]),
        max_tokens=MAX_TOKENS,
        stop_token_ids=st.sampled_from([(), (), (), (1, 2, 3, 4, 5)]),
        prompt_logprobs=st.sampled_from([None, None, None, 3]),
    ),
    cache_salt=st.sampled_from([b"", b"", b"tenant"]),
)
BEAMS = st.builds(
    lambda prompt, width, n, max_tokens: _request(
        prompt,
        generate_pb2.SamplingParams(
            n=min(n, width), best_of=width, max_tokens=max_tokens, use_beam_search=True, length_penalty=1.0
        ),
    ),
    PROMPTS,
    st.integers(1, 3),
    st.integers(1, 2),
    MAX_TOKENS,
)
POOLED = st.builds(
    _request,
    PROMPTS,
    st.just(generate_pb2.SamplingParams(n=1, max_tokens=1)),
    pooling=st.sampled_from([generate_pb2.POOLING_TYPE_LAST, generate_pb2.POOLING_TYPE_MEAN]),
)
REQUESTS = st.one_of(SAMPLED, SAMPLED, SAMPLED, BEAMS, POOLED)


class Recovery(RuleBasedStateMachine):
    """Requests, steps and deaths in any order."""

    world: World

    @initialize(sizes=SIZES, num_gateways=st.integers(1, 2), requests=st.lists(REQUESTS, min_size=2, max_size=5))
    def start(self, sizes, num_gateways, requests):
        self.world = World(sizes)
        for _ in range(num_gateways):
            self.world.add_gateway()
        self.num_requests = 0
        for request in requests:
            self._submit(request, num_attempts=1)

    # Requests

    @rule(
        requests=st.lists(REQUESTS, min_size=1, max_size=3),
        num_attempts=st.integers(1, 2),
        tenant=st.sampled_from(["", "one", "other"]),
        priority=st.integers(-1, 1),
    )
    def submit(self, requests, num_attempts, tenant, priority):
        for request in requests:
            if self.world.sizes.policy == "priority":
                request.priority = priority
            if tenant:
                request.tenant.name = tenant
            self._submit(request, num_attempts)

    def _submit(self, request, num_attempts):
        connected = [gateway for gateway in self.world.gateways if gateway.outputs is not None]
        room = self.world.sizes.capacity - len(request.prompt_token_ids) // 4
        if not connected or room < 1:
            return
        self.num_requests += 1
        gateway = connected[self.num_requests % len(connected)]
        request.gateway_id, request.request_key = gateway.id, self.num_requests
        request.sampling_params.max_tokens = min(request.sampling_params.max_tokens, room)
        try:
            self.world.submit(gateway, request, num_attempts)
        except RefusedError:
            assert request.sampling_params.use_beam_search, "only beams might not fit"

    @precondition(lambda self: any(gateway.clients for gateway in self.world.gateways))
    @rule(data=st.data())
    def give_up(self, data):
        gateway, client = data.draw(
            st.sampled_from([(gateway, client) for gateway in self.world.gateways for client in gateway.clients])
        )
        wanted = [index for index in client.outputs if index not in client.ended]
        # A beam search ends as a whole.
        some = wanted if client.request.sampling_params.use_beam_search else wanted[:1]
        self.world.give_up(gateway, client, data.draw(st.sampled_from([wanted, some])))

    # Steps

    @rule(lane=LANES, actions=st.lists(st.sampled_from(STEP), min_size=1, max_size=8))
    def step(self, lane, actions):
        for action in actions:
            getattr(self.world, action)(self._lane(lane))

    @rule(data=st.data(), reads=st.booleans())
    def transmit(self, data, reads):
        gateway = data.draw(st.sampled_from(self.world.gateways))
        self.world.transmit(gateway)
        if reads:
            self.world.read(gateway)

    @rule(rounds=st.integers(1, 10))
    def go_on(self, rounds):
        for _ in range(rounds):
            self.world.work()

    # Deaths. Those of executors and schedulers come after some work, with steps in flight.

    @rule(
        lane=LANES,
        rounds=ROUNDS,
        num_plans=PLANS,
        num_computed=PLANS,
        what=st.sampled_from(["crash", "crash torn", "upgrade"]),
        back=st.booleans(),
    )
    def lose_executor(self, lane, rounds, num_plans, num_computed, what, back):
        self.go_on(rounds)
        lane = self._lane(lane)
        self._plan([lane] * num_plans)
        if lane.is_live and what == "upgrade":
            self.world.upgrade_executor(lane)
        elif lane.is_live:
            self.world.crash_executor(lane, num_computed, torn=what == "crash torn")
        if back and not lane.is_live:
            self.world.start_executor(lane)

    @rule(
        rounds=ROUNDS,
        num_plans=PLANS,
        num_computed=PLANS,
        torn_byte=st.none() | st.integers(0, 4000),
        back=st.sampled_from([True, True, False]),
    )
    def crash_scheduler(self, rounds, num_plans, num_computed, torn_byte, back):
        self.go_on(rounds)
        self._plan(self.world.lanes * num_plans)
        self.world.crash_scheduler(num_computed, torn_byte)
        if back:
            self._bring_gateways_back()

    @rule(
        data=st.data(),
        rounds=ROUNDS,
        what=st.sampled_from(["crash", "lose", "lose unnoticed", "come back", "come back"]),
    )
    def trouble_gateway(self, data, rounds, what):
        """A gateway dies; or a stream breaks though both ends live, and the scheduler sees it at once or later."""
        self.go_on(rounds)
        gateway = data.draw(st.sampled_from(self.world.gateways))
        if what == "come back":
            self._bring_gateways_back()
        elif what == "lose unnoticed":
            gateway.outputs = None
        else:
            self.world.disconnect(gateway)
        if what == "crash":
            self.world.gateways.remove(gateway)
            self.world.add_gateway()

    # Invariants

    @invariant()
    def blocks_add_up(self):
        if hasattr(self, "world"):
            self.world.scheduler.check_integrity(deep=True)

    def teardown(self):
        if hasattr(self, "world"):
            try:
                self._end_everything()
            finally:
                self.world.close()

    def _end_everything(self):
        """Whatever happened: once gateways and one executor are back, everything finishes and no block is held."""
        world = self.world
        if not any(lane.is_live for lane in world.lanes):
            world.start_executor(world.lanes[0])
        self._bring_gateways_back()
        for _ in range(10_000):
            if not world.work():
                break
        assert not any(gateway.clients for gateway in world.gateways), "a request never ended"
        assert not world.scheduler.requests
        world.scheduler.check_integrity(deep=True)
        assert world.scheduler.kv_cache.pool.num_held == 0
        world.pool.check_journal()

    def _plan(self, lanes):
        for lane in lanes:
            self.world.plan(lane)

    def _lane(self, index):
        return self.world.lanes[index % len(self.world.lanes)]

    def _bring_gateways_back(self):
        for gateway in self.world.gateways:
            if gateway.outputs is None:
                self.world.connect(gateway)


TestRecovery = Recovery.TestCase
TestRecovery.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, report_multiple_bugs=False)


@pytest.mark.slow
class TestLongRecovery(Recovery.TestCase):
    """The same, further into the space of histories."""

    settings = settings(TestRecovery.settings, max_examples=500, stateful_step_count=60)
