"""Random histories with a swap tier: whatever moves and whoever dies, a sequence reads the KV of its own tokens.

What fake executors store for a token is a digest of all tokens before it, and they execute moves literally, so a copy
that is stale, torn or another's is noticed by whoever reads it.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.fake_executor import digests
from support.scheduling import Bench

from quire.columns import unpack_u32
from quire.kv_journal import KvJournal, record_bytes
from quire.scheduler.block_pool import CachedPrefix

# Many histories, on machines that are busy with others.
pytestmark = pytest.mark.timeout(600)

MAX_IN_FLIGHT = 3
LANES = st.integers(0, 1)
# Few prompts that are asked for again and again, and share their beginnings.
PROMPTS = st.builds(
    lambda topic, length, own: ([topic, 8, 7] * 6)[:length] + own,
    st.integers(0, 3),
    st.integers(0, 16),
    st.lists(st.integers(0, 2), min_size=1, max_size=3),
)


def _tokens(prefix: CachedPrefix | None) -> list[int]:
    return [] if prefix is None else _tokens(prefix.parent) + unpack_u32(prefix.tokens)


class SwapHistories(RuleBasedStateMachine):
    """A pool that is too small, with a tier of any size behind it, and steps in flight on one or two lanes."""

    @initialize(
        num_blocks=st.integers(6, 16),
        block_size=st.sampled_from([1, 2, 4]),
        budget=st.sampled_from([3, 8, 40]),
        num_lanes=st.integers(1, 2),
        num_swap_blocks=st.sampled_from([1, 4, 10, 40]),
        max_moves=st.sampled_from([1, 2, 100]),
    )
    def start(self, num_blocks, block_size, budget, num_lanes, num_swap_blocks, max_moves):
        self.capacity = num_blocks * block_size
        self.block_size = block_size
        journal = bytearray(num_blocks * record_bytes(block_size))
        self.bench = Bench(
            num_blocks=num_blocks,
            block_size=block_size,
            max_num_batched_tokens=budget,
            max_num_seqs=4,
            max_model_len=self.capacity,
            num_lanes=num_lanes,
            num_swap_blocks=num_swap_blocks,
            max_moves=max_moves,
            journal=KvJournal(memoryview(journal), block_size),
        )
        self.num_losses = 0

    @rule(
        prompt=PROMPTS,
        n=st.sampled_from([1, 1, 3]),
        max_tokens=st.integers(1, 12),
        extra_key=st.sampled_from([b"", b"", b"tenant"]),
    )
    def submit(self, prompt, n, max_tokens, extra_key):
        prompt = prompt[: self.capacity - 1]
        max_tokens = min(max_tokens, self.capacity - len(prompt))
        self.bench.submit(prompt, max_tokens=max_tokens, n=n, extra_key=extra_key, ignore_eos=True)

    @rule(pick=st.integers(0, 100), is_pause=st.booleans())
    def stop(self, pick, is_pause):
        if keys := list(self.bench.scheduler.requests):
            key = keys[pick % len(keys)]
            (self.bench.scheduler.pause if is_pause else self.bench.scheduler.abort)(key)

    @rule()
    def resume(self):
        for key in list(self.bench.scheduler.requests):
            self.bench.scheduler.resume(key)

    @rule(max_steps=st.integers(1, 20))
    def run(self, max_steps):
        """Some steps one after another, so that requests end and blocks are evicted."""
        for i in range(max_steps):
            lane = i % len(self.bench.lanes)
            if not self.bench.in_flight(lane):
                self.bench.step(lane)

    @rule(lane=LANES)
    def plan(self, lane):
        lane %= len(self.bench.lanes)
        if self.bench.in_flight(lane) < MAX_IN_FLIGHT:
            self.bench.plan(lane)

    @rule(lane=LANES)
    def compute(self, lane):
        lane %= len(self.bench.lanes)
        if self.bench.lanes[lane].sent:
            self.bench.compute(lane)

    @rule(lane=LANES)
    def deliver(self, lane):
        lane %= len(self.bench.lanes)
        if self.bench.lanes[lane].computed:
            self.bench.deliver(lane)

    @precondition(lambda self: self.num_losses < 4)  # five in a row would end requests
    @rule(lane=LANES, forgets=st.booleans())
    def lose(self, lane, forgets):
        """An executor dies, and what it had not computed is half written; the pool may have been its own."""
        lane %= len(self.bench.lanes)
        self.num_losses += 1
        while self.bench.in_flight(lane) < MAX_IN_FLIGHT and self.bench.plan(lane):
            pass
        self.bench.lose(lane)
        if forgets and len(self.bench.lanes) == 1:
            self.bench.memory.slots.clear()
            self.bench.scheduler.kv_cache.forget_all()
        self.bench.scheduler.regain_lane(lane)

    @invariant()
    def every_copy_that_counts_is_true(self):
        if not hasattr(self, "bench"):
            return
        self.bench.scheduler.check_integrity(deep=True)
        cache = self.bench.scheduler.kv_cache
        for block in cache.swap.pool.blocks:
            copy = None if block.prefix is None else cache.swap.find(*self._name(block.prefix), lane=-1)
            if copy is not None:
                assert copy.block is block
                truth = digests(_tokens(block.prefix))[-self.block_size :]
                stored = [self.bench.memory.host_slots.get((block.id, at)) for at in range(self.block_size)]
                assert stored == truth, f"host block {block.id} does not hold what it is found by"

    def teardown(self):
        if not hasattr(self, "bench"):
            return
        self.resume()
        self.bench.drain()
        for submitted in self.bench.submitted.values():
            for index in submitted.finished:
                assert submitted.outputs[index] == submitted.truth(index)
        self.every_copy_that_counts_is_true()
        self.bench.check_idle()

    @staticmethod
    def _name(prefix):
        return prefix.hash, prefix.parent, prefix.tokens, prefix.extra_key


TestSwapHistories = SwapHistories.TestCase
TestSwapHistories.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)
