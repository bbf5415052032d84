"""Random histories with listeners: what they make of the events is what the prefix cache has, whenever they look."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.scheduling import Bench

from quire.scheduler.block_pool import CachedPrefix
from quire.scheduler.monitor.kv_events import KvEventLog
from quire.v1 import monitor_pb2

MAX_IN_FLIGHT = 3


@dataclass
class Mirror:
    """A router's: parents by hash."""

    log: KvEventLog
    position: int = 0
    parents: dict[bytes, bytes] = field(default_factory=dict)

    def read(self) -> None:
        """Reads on, or anew if events are lost."""
        if not self.log.has_after(self.position):
            events = list(self.log.snapshot())
            assert [event.id for event in events] == [0] * (len(events) - 1) + [self.log.last_id]
        else:
            events = self.log.after(self.position, 2**32)
            assert [event.id for event in events] == list(range(self.position + 1, self.log.last_id + 1))
        for event in events:
            self.take(event)
        self.position = self.log.last_id

    def take(self, event: monitor_pb2.KvEvent) -> None:
        match event.WhichOneof("event"):
            case "cleared":
                self.parents.clear()
            case "removed":
                del self.parents[event.removed.block_hash]
            case "stored":
                stored = event.stored
                assert stored.block_hash not in self.parents, "stored twice"
                assert stored.block_hash not in self.parents.values(), "stored after its child"
                self.parents[stored.block_hash] = stored.parent_hash


class KvEventHistories(RuleBasedStateMachine):
    """Requests come and go on two lanes, in a pool that evicts all the time."""

    @initialize(
        num_blocks=st.integers(6, 16),
        block_size=st.sampled_from([1, 2, 4]),
        budget=st.sampled_from([3, 8, 40]),
        num_lanes=st.integers(1, 2),
    )
    def start(self, num_blocks, block_size, budget, num_lanes):
        self.capacity = num_blocks * block_size
        self.bench = Bench(
            num_blocks=num_blocks,
            block_size=block_size,
            max_num_batched_tokens=budget,
            max_num_seqs=4,
            max_model_len=self.capacity,
            num_lanes=num_lanes,
        )
        self.cache = self.bench.scheduler.kv_cache
        self.mirrors = []

    @rule(max_events=st.sampled_from([1, 3, 1000]))
    def listen(self, max_events):
        """From now on, and nobody else any more."""
        self.cache.prefixes.listener = log = KvEventLog(self.cache, max_events)
        self.mirrors = [Mirror(log)]

    @precondition(lambda self: self.mirrors)
    @rule()
    def join(self):
        """A further reader comes, and reads what is there."""
        self.mirrors.append(Mirror(self.mirrors[0].log))

    @rule(
        shared=st.integers(0, 12),
        own=st.lists(st.integers(0, 3), min_size=1, max_size=6),
        n=st.sampled_from([1, 1, 3]),
        max_tokens=st.integers(1, 12),
        extra_key=st.sampled_from([b"", b"tenant"]),
    )
    def submit(self, shared, own, n, max_tokens, extra_key):
        prompt = ([9, 8, 7] * shared)[:shared] + own
        if len(prompt) < self.capacity:
            max_tokens = min(max_tokens, self.capacity - len(prompt))
            self.bench.submit(prompt, n=n, max_tokens=max_tokens, extra_key=extra_key)

    @precondition(lambda self: self.bench.scheduler.requests)
    @rule(data=st.data())
    def abort(self, data):
        self.bench.scheduler.abort(data.draw(st.sampled_from(list(self.bench.scheduler.requests))))

    @rule(lane=st.integers(0, 1))
    def plan(self, lane):
        lane %= len(self.bench.lanes)
        if self.bench.in_flight(lane) < MAX_IN_FLIGHT:
            self.bench.plan(lane)

    @rule(lane=st.integers(0, 1), num_steps=st.integers(1, 3))
    def deliver(self, lane, num_steps):
        lane %= len(self.bench.lanes)
        for _ in range(min(num_steps, self.bench.in_flight(lane))):
            self.bench.compute(lane)
            self.bench.deliver(lane)

    @rule(lane=st.integers(0, 1))
    def lose(self, lane):
        lane %= len(self.bench.lanes)
        if self.bench.scheduler.has_work:
            self.bench.lose(lane)
        self.bench.scheduler.regain_lane(lane)

    @rule()
    def forget_all(self):
        """The pool was an executor's own memory, and it has gone with it."""
        for lane in range(len(self.bench.lanes)):
            self.bench.lose(lane)
        self.bench.memory.slots.clear()
        self.cache.forget_all()
        for lane in range(len(self.bench.lanes)):
            self.bench.scheduler.regain_lane(lane)

    @precondition(lambda self: self.mirrors)
    @rule(data=st.data())
    def read(self, data):
        """One of the readers; others lag."""
        mirror = data.draw(st.sampled_from(self.mirrors))
        mirror.read()
        assert mirror.parents == self.announced()

    @invariant()
    def nothing_is_lost(self):
        if hasattr(self, "bench"):
            self.bench.scheduler.check_integrity(deep=True)

    def announced(self) -> dict[bytes, bytes]:
        """Parents by hash of the contents that are computed, as is all before them."""
        known = set(self.cache.prefixes.contents())

        def is_there(prefix: CachedPrefix) -> bool:
            is_computed = prefix.step <= self.cache.lanes[prefix.lane].acknowledged_step
            return is_computed and (prefix.parent not in known or is_there(prefix.parent))

        return {prefix.hash: prefix.parent.hash if prefix.parent else b"" for prefix in known if is_there(prefix)}

    def teardown(self):
        if not hasattr(self, "bench"):
            return
        self.bench.drain()
        for mirror in self.mirrors:
            mirror.read()
            assert mirror.parents == self.announced()
        assert set(self.announced()) == {prefix.hash for prefix in self.cache.prefixes.contents()}


TestKvEventHistories = KvEventHistories.TestCase
TestKvEventHistories.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
