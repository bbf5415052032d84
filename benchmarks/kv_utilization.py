"""How much of the allocated KV memory holds tokens: paged blocks against contiguous reservations.

A contiguous cache reserves room for the longest output a request may have, here 512 slots, before it knows how
long the output will be. A paged cache allocates blocks of 16 slots as tokens come, so a sequence wastes at most its
last block: on average half a block, which for sequences of about 100 tokens is 5 to 8 %.

The workload is the published one, rebuilt from its figures: five requests of 80 to 125 tokens (519 in all, 20.3 % of
5 × 512 slots, 95.4 % of their 34 blocks), then as many such users as fit 10,000 slots (19 contiguous, 92 paged).
Requests arrive as prompts and generate their last six tokens here. Nothing is computed from lengths: both paged
figures are counted from the block tables of a live scheduler while the requests run: for five requests each when it
holds most tokens, for as many as fit at the moment when most slots hold tokens.

    .venv/bin/python benchmarks/kv_utilization.py
"""

from __future__ import annotations

import json
import random
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from quire import LLM, SamplingParams
from quire.columns import unpack_u32
from quire.config import BUNDLED_MODEL
from quire.executor.model_config import load_model_config
from quire.internal.v1 import scheduler_pb2, scheduler_pb2_grpc
from quire.rpc import open_sync_channel

BLOCK_SIZE = 16
RESERVED_SLOTS = 512
POOL_SLOTS = 10_000
LENGTHS = (80, 125, 90, 105, 119)
NUM_GENERATED = 6


@dataclass(frozen=True)
class Sample:
    """What the block tables said at one moment."""

    num_users: int
    num_blocks: int
    num_tokens: int

    @property
    def utilization(self) -> float:
        """Share of the allocated slots that hold tokens."""
        return self.num_tokens / (self.num_blocks * BLOCK_SIZE) if self.num_blocks else 0.0


class BlockTableWatch(threading.Thread):
    """Reads the live block tables as fast as it can, until it is stopped; keeps the fullest sample."""

    def __init__(self, address: str) -> None:
        super().__init__(name="block-table-watch")
        self._address = address
        self._done = threading.Event()
        # The moment when most slots held tokens, and for each request its own such moment.
        self.fullest = Sample(0, 0, 0)
        self.fullest_of: dict[str, Sample] = {}

    def run(self) -> None:
        with open_sync_channel(self._address) as channel:
            scheduler = scheduler_pb2_grpc.SchedulerServiceStub(channel)
            while not self._done.is_set():
                state = scheduler.GetKvCacheState(scheduler_pb2.GetKvCacheStateRequest(), timeout=10)
                self.fullest = max(self.fullest, count(state.sequences), key=_tokens)
                for sequence in state.sequences:
                    before = self.fullest_of.get(sequence.request_id, Sample(0, 0, 0))
                    self.fullest_of[sequence.request_id] = max(before, count([sequence]), key=_tokens)

    def stop(self) -> None:
        self._done.set()
        self.join()

    @property
    def each_at_its_fullest(self) -> Sample:
        """All requests, each when it held most: arrivals are some steps apart, and so are the ends."""
        samples = self.fullest_of.values()
        return Sample(
            len(samples), sum(sample.num_blocks for sample in samples), sum(sample.num_tokens for sample in samples)
        )


def _tokens(sample: Sample) -> int:
    return sample.num_tokens


def count(sequences: Iterable[scheduler_pb2.SequenceBlocks]) -> Sample:
    """Users that hold blocks, the distinct blocks they hold, and the slots of these that hold tokens."""
    holding = [sequence for sequence in sequences if sequence.block_ids]
    blocks = {block for sequence in holding for block in unpack_u32(sequence.block_ids)}
    return Sample(len(holding), len(blocks), sum(sequence.num_computed_tokens for sequence in holding))


def measure(llm: LLM, num_requests: int) -> BlockTableWatch:
    """Runs `num_requests` requests of the workload at once and returns what the block tables said."""
    draw = random.Random(num_requests)
    lengths = [LENGTHS[i % len(LENGTHS)] for i in range(num_requests)]
    prompts = [[draw.randrange(2048) for _ in range(length - NUM_GENERATED)] for length in lengths]
    # The last token that is sampled gets no slot: nothing comes after it.
    params = SamplingParams(temperature=0, max_tokens=NUM_GENERATED + 1, ignore_eos=True)
    watch = BlockTableWatch(llm.scheduler_address)
    watch.start()
    try:
        llm.generate(prompts, params, use_tqdm=False)
    finally:
        watch.stop()
    return watch


def main() -> int:
    """Measures, prints a table and the JSON line; status 1 if the claims do not hold."""
    bytes_per_token = load_model_config(BUNDLED_MODEL).cache_group(element_bytes=2).bytes_per_token
    with LLM(
        dtype="bfloat16",
        max_model_len=RESERVED_SLOTS,
        block_size=BLOCK_SIZE,
        kv_cache_memory=POOL_SLOTS * bytes_per_token,
        max_num_batched_tokens=POOL_SLOTS,
        enable_prefix_caching=False,
    ) as llm:
        five = max((measure(llm, 5).each_at_its_fullest for _ in range(3)), key=_tokens)
        full = measure(llm, 200).fullest
    contiguous_users = POOL_SLOTS // RESERVED_SLOTS
    result = {
        "contiguous_utilization": round(five.num_tokens / (5 * RESERVED_SLOTS), 4),
        "paged_utilization": round(five.utilization, 4),
        "memory_ratio": round(5 * RESERVED_SLOTS / (five.num_blocks * BLOCK_SIZE), 2),
        "contiguous_users": contiguous_users,
        "paged_users": full.num_users,
        "paged_utilization_full": round(full.utilization, 4),
        "users_ratio": round(full.num_users / contiguous_users, 2),
    }
    print(f"{'':34}{'contiguous':>12}{'paged':>12}{'published':>20}")
    print(
        f"{'slots that hold tokens, 5 requests':34}{result['contiguous_utilization']:>12.1%}"
        f"{result['paged_utilization']:>12.1%}{'20.3 % → 95.4 %':>20}"
    )
    print(f"{'users in 10,000 slots':34}{contiguous_users:>12}{full.num_users:>12}{'19 → 92':>20}")
    print(json.dumps(result))
    return 0 if result["paged_utilization"] >= 0.95 and result["users_ratio"] >= 4.8 else 1


if __name__ == "__main__":
    sys.exit(main())
