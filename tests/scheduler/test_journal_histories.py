"""Random histories of schedulers that die and come again: whenever one reads the journal, all it says is true.

What the fake executors store for a token is a digest of all tokens before it. So a record is true if the memory of its
block has the digests of the chain of records that it ends.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.fake_executor import FakeKvMemory, digests
from support.scheduling import Bench

from quire.columns import unpack_u32
from quire.kv_journal import KvJournal, chain_hash, record_bytes
from quire.scheduler.block_pool import CachedPrefix
from quire.scheduler.prefix_journal import PrefixJournal

MAX_IN_FLIGHT = 3


def _tokens(prefix: CachedPrefix | None) -> list[int]:
    return [] if prefix is None else _tokens(prefix.parent) + unpack_u32(prefix.tokens)


class JournalHistories(RuleBasedStateMachine):
    """Requests come and go on one or two lanes, in a pool that evicts all the time, and schedulers die."""

    @initialize(
        num_blocks=st.integers(6, 16),
        block_size=st.sampled_from([1, 2, 4]),
        budget=st.sampled_from([3, 8, 40]),
        num_lanes=st.integers(1, 2),
    )
    def start(self, num_blocks, block_size, budget, num_lanes):
        self.capacity = num_blocks * block_size
        self.sizes = {
            "num_blocks": num_blocks,
            "block_size": block_size,
            "max_num_batched_tokens": budget,
            "max_num_seqs": 4,
            "max_model_len": self.capacity,
            "num_lanes": num_lanes,
        }
        self.journal = bytearray(num_blocks * record_bytes(block_size))
        self.memory = FakeKvMemory(block_size)
        self.begin()

    def begin(self):
        """A scheduler with executors of its own finds memory and journal as they are."""
        journal = KvJournal(memoryview(self.journal), self.sizes["block_size"])
        self.bench = Bench(**self.sizes, memory=self.memory, journal=journal)

    @rule(
        shared=st.integers(0, 12),
        own=st.lists(st.integers(0, 3), min_size=1, max_size=6),
        n=st.sampled_from([1, 1, 3]),
        max_tokens=st.integers(1, 12),
        extra_key=st.sampled_from([b"", b"tenant"]),
    )
    def submit(self, shared, own, n, max_tokens, extra_key):
        prompt = (([9, 8, 7] * shared)[:shared] + own)[: self.capacity - 1]
        self.bench.submit(
            prompt, max_tokens=min(max_tokens, self.capacity - len(prompt)), n=n, extra_key=extra_key, ignore_eos=True
        )

    @rule(pick=st.integers(0, 100))
    def abort(self, pick):
        keys = list(self.bench.scheduler.requests)
        if keys:
            self.bench.scheduler.abort(keys[pick % len(keys)])

    @rule(max_steps=st.integers(1, 20))
    def run(self, max_steps):
        """Some steps one after another, so that requests end and blocks are evicted."""
        for i in range(max_steps):
            lane = i % len(self.bench.lanes)
            if not self.bench.in_flight(lane):
                self.bench.step(lane)

    @rule(lane=st.integers(0, 1))
    def plan(self, lane):
        lane %= self.sizes["num_lanes"]
        if self.bench.in_flight(lane) < MAX_IN_FLIGHT:
            self.bench.plan(lane)

    @rule(lane=st.integers(0, 1))
    def compute(self, lane):
        lane %= self.sizes["num_lanes"]
        if self.bench.lanes[lane].sent:
            self.bench.compute(lane)

    @rule(lane=st.integers(0, 1))
    def deliver(self, lane):
        lane %= self.sizes["num_lanes"]
        if self.bench.lanes[lane].computed:
            self.bench.deliver(lane)

    @rule(lane=st.integers(0, 1))
    def lose(self, lane):
        """An executor dies, and what it had not computed is half written; another takes its place."""
        lane %= self.sizes["num_lanes"]
        self.bench.lose(lane)
        self.bench.scheduler.regain_lane(lane)

    @rule(executors_too=st.booleans())
    def die(self, executors_too):
        """Executors finish what was sent before they attach the pool again; if they die, it is computed by halves."""
        for lane in self.bench.lanes if not executors_too else ():
            while lane.sent:
                self.bench.compute(self.bench.lanes.index(lane))
        journal = KvJournal(memoryview(self.journal), self.sizes["block_size"])
        for block_id, offset in self.memory.slots:
            if block_id not in journal:
                self.memory.slots[block_id, offset] = b"whatever"
        self.begin()

    @invariant()
    def every_record_is_true(self):
        if not hasattr(self, "bench"):
            return
        copy = KvJournal(memoryview(bytearray(self.journal)), self.sizes["block_size"])
        for block_id, prefix in PrefixJournal(copy, 1).restore(chain_hash):
            truth = digests(_tokens(prefix))[-self.sizes["block_size"] :]
            stored = [self.memory.slots.get((block_id, offset)) for offset in range(self.sizes["block_size"])]
            assert stored == truth, f"block {block_id} does not hold what its record says"
        self.bench.scheduler.check_integrity(deep=True)

    def teardown(self):
        if hasattr(self, "bench"):
            self.bench.drain()
            for submitted in self.bench.submitted.values():
                for index in submitted.finished:
                    assert submitted.outputs[index] == submitted.truth(index)
            self.every_record_is_true()
            self.bench.check_idle()


TestJournalHistories = JournalHistories.TestCase
TestJournalHistories.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
