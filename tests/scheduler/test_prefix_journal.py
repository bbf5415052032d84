"""What a prefix cache leaves in the journal, and what the next one makes of it."""

from __future__ import annotations

import hashlib

import pytest
from support.fake_executor import FakeKvMemory
from support.scheduling import Bench

from quire.kv_journal import KvJournal, record_bytes
from quire.scheduler import kv_cache, prefix_cache
from quire.scheduler.block_pool import CachedPrefix
from quire.scheduler.kv_cache import KvCache
from quire.scheduler.prefix_journal import PrefixJournal

BLOCK_SIZE = 4
NUM_BLOCKS = 16
PROMPT = list(range(1, 14))


class Pool:
    """Memory and journal that schedulers find one after the other."""

    def __init__(self, num_blocks: int = NUM_BLOCKS) -> None:
        self.num_blocks = num_blocks
        self.bytes = bytearray(num_blocks * record_bytes(BLOCK_SIZE))
        self.memory = FakeKvMemory(BLOCK_SIZE)

    def journal(self) -> KvJournal:
        return KvJournal(memoryview(self.bytes), BLOCK_SIZE)

    def scheduler(self, **settings: object) -> Bench:
        return Bench(
            num_blocks=self.num_blocks,
            block_size=BLOCK_SIZE,
            memory=self.memory,
            journal=self.journal(),
            **settings,  # type: ignore[arg-type]
        )

    def num_recorded(self) -> int:
        return sum(1 for _ in self.journal().records())


def _cached(bench: Bench, prompt: list[int], **request: object) -> int:
    """How many of a prompt's tokens are found in the cache; its output is the truth."""
    submitted = bench.submit(prompt, max_tokens=2, **request)  # type: ignore[arg-type]
    bench.drain()
    assert submitted.outputs[0] == submitted.truth(0)
    assert submitted.request.num_cached_tokens is not None
    return submitted.request.num_cached_tokens


def test_the_next_scheduler_finds_what_was_acknowledged():
    pool = Pool()
    first = pool.scheduler()
    assert _cached(first, PROMPT) == 0
    second = pool.scheduler()
    assert second.scheduler.kv_cache.num_restored == 3
    assert second.scheduler.kv_cache.pool.num_cached == 3
    assert _cached(second, PROMPT) == 12
    assert _cached(second, [*PROMPT[:8], 40, 41, 42, 43, 44]) == 8
    second.check_idle()


def test_a_step_that_was_not_acknowledged_leaves_no_record():
    pool = Pool()
    first = pool.scheduler(max_num_batched_tokens=4)
    first.submit(PROMPT)
    first.plan()
    first.plan()
    assert pool.num_recorded() == 0
    first.compute()
    first.compute()
    assert pool.num_recorded() == 0
    first.deliver()
    assert pool.num_recorded() == 1
    assert pool.scheduler().scheduler.kv_cache.num_restored == 1


def test_blocks_of_a_lost_lane_get_no_record():
    pool = Pool()
    bench = pool.scheduler(max_num_batched_tokens=8)
    submitted = bench.submit(PROMPT)
    bench.step()
    bench.plan()
    cache = bench.scheduler.kv_cache
    bench.scheduler.abort(submitted.request.key)
    cache.lose_lane(0)
    assert pool.num_recorded() == 2
    bench.scheduler.check_integrity(deep=True)


def test_a_block_that_fills_while_its_sequence_ends_gets_its_record_at_once():
    """Its last token is known and computed only when no step is in flight any more."""
    pool = Pool()
    bench = pool.scheduler()
    bench.submit(PROMPT[:3], max_tokens=6)
    bench.drain(overlap=1)
    assert pool.num_recorded() == 2
    bench.check_idle()


def test_records_of_evicted_blocks_are_cleared_before_the_plan_is_sent():
    pool = Pool(num_blocks=4)
    bench = pool.scheduler()
    _cached(bench, PROMPT)
    assert pool.num_recorded() == 3
    bench.submit([30 + i for i in range(13)], max_tokens=2)
    bench.plan()
    assert pool.num_recorded() == 0


def test_the_least_recently_used_chain_goes_first_and_a_chain_from_its_end():
    pool = Pool()
    first = pool.scheduler()
    old, new = [20 + i for i in range(9)], [30 + i for i in range(9)]
    for prompt in (old, new, old):  # a hit makes it the most recently used
        _cached(first, prompt)
    second = pool.scheduler()
    cache = second.scheduler.kv_cache
    assert cache.num_restored == 4
    taken = [cache.pool.take() for _ in range(NUM_BLOCKS)][-4:]
    first_tokens = [block.prefix.tokens[0] for block in taken if block.prefix is not None]
    assert first_tokens == [34, 30, 24, 20]


def test_a_record_counts_only_with_all_records_before_it():
    pool = Pool()
    _cached(pool.scheduler(), PROMPT)
    journal = pool.journal()
    chain = sorted(journal.records(), key=lambda item: item[1].number)
    journal.clear(chain[1][0])
    second = pool.scheduler()
    assert second.scheduler.kv_cache.num_restored == 1
    assert pool.num_recorded() == 1, "what does not count is cleared"
    assert _cached(second, PROMPT) == 4


@pytest.mark.parametrize("field", ["hash", "tokens", "extra_key", "parent", "number"])
def test_a_record_that_is_not_what_its_hash_says_is_free(field):
    """With the right checksum: only the recomputed chain of hashes tells."""
    pool = Pool()
    _cached(pool.scheduler(), PROMPT)
    journal = pool.journal()
    chain = sorted(journal.records(), key=lambda item: item[1].number)
    block_id, record = chain[1]
    wrong = {
        "hash": bytes(32),
        "tokens": bytes(16),
        "extra_key": b"k" * 32,
        "parent": chain[2][1].number,
        "number": chain[0][1].number,
    }
    fields = {name: getattr(record, name) for name in ("number", "parent", "hash", "extra_key", "tokens")}
    fields[field] = wrong[field]
    journal.write(block_id, fields["number"], fields["parent"], fields["hash"], fields["extra_key"], fields["tokens"])
    second = pool.scheduler()
    assert _cached(second, PROMPT) <= 4
    second.check_idle()


def test_random_bytes_are_no_journal():
    pool = Pool()
    pool.bytes[:] = hashlib.shake_128(b"noise").digest(len(pool.bytes))
    bench = pool.scheduler()
    assert bench.scheduler.kv_cache.num_restored == 0
    assert _cached(bench, PROMPT) == 0
    bench.check_idle()


def test_keys_separate_after_a_restart_too():
    pool = Pool()
    _cached(pool.scheduler(), PROMPT, extra_key=b"a")
    second = pool.scheduler()
    assert _cached(second, PROMPT, extra_key=b"b") == 0
    assert _cached(second, PROMPT) == 0
    assert _cached(second, PROMPT, extra_key=b"a") == 12


def test_forced_collisions_are_never_hits_even_through_the_journal(monkeypatch):
    """With hashes of one bit everything collides. Outputs are checked token for token in `_cached`."""

    def short(parent: bytes, tokens: bytes, extra_key: bytes) -> bytes:
        return bytes([hashlib.sha256(parent + tokens + extra_key).digest()[0] % 2]) * 32

    for module in (prefix_cache, kv_cache):
        monkeypatch.setattr(module, "chain_hash", short)
    pool = Pool()
    prompts = [[10 * i + j for j in range(9)] for i in range(4)]
    for round_ in range(4):
        bench = pool.scheduler()
        for prompt in prompts:
            cached = _cached(bench, prompt)
            assert cached == 0 if round_ == 0 else cached <= 8
        bench.check_idle()


def test_a_parent_that_was_computed_anew_does_not_inherit_children():
    """Not even if the hash is the same: the record of a child names its parent's number."""
    pool = Pool()
    journal = PrefixJournal(pool.journal(), 1)
    list(journal.restore(prefix_cache.chain_hash))
    cache = KvCache(NUM_BLOCKS, BLOCK_SIZE)
    tokens = bytes(range(16))
    parents = [CachedPrefix(prefix_cache.chain_hash(b"", tokens, b""), None, tokens, b"", 0, 0) for _ in range(2)]
    child = CachedPrefix(prefix_cache.chain_hash(parents[0].hash, tokens, b""), parents[0], tokens, b"", 0, 0)
    journal.add(cache.pool.blocks[0], parents[0])
    journal.add(cache.pool.blocks[1], child)
    journal.forget(cache.pool.blocks[0])
    journal.add(cache.pool.blocks[0], parents[1])
    found = list(PrefixJournal(pool.journal(), 1).restore(prefix_cache.chain_hash))
    assert [block_id for block_id, _ in found] == [0]


def test_blocks_beyond_the_first_part_are_usable_once_they_are_restored():
    pool = Pool()
    _cached(pool.scheduler(), PROMPT)
    used = [block_id for block_id, _ in pool.journal().records()]
    cache = KvCache(NUM_BLOCKS, BLOCK_SIZE, num_usable=1, journal=pool.journal())
    cache.restore()
    assert cache.pool.num_usable == max(used) + 1
    cache.pool.extend(4)
    assert cache.pool.num_usable == max(max(used) + 1, 4)
    cache.pool.extend(NUM_BLOCKS)
    cache.check_integrity([], deep=True)
    assert cache.pool.num_available == NUM_BLOCKS
