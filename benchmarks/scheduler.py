"""What a step costs the scheduler process, beside waiting: time per step against running requests and pool size.

Everything between two waits is timed, on the real classes: `schedule()`, the plan's message and its bytes, parsing
the result, `update_from_output()`, and the bytes of the message for the gateway. Only the executor is a fake, and its
time does not count; nor does the transport's. Two steps are in flight, as in production.

All of it is Python on one core, so the limit is not bytes but objects touched, at some 20 to 50 ns each on the
machine of docs/benchmarks.md. A row has to be visited twice at least, planned and taken in, its token appended and
compared with its stop tokens, and its numbers written into the columns of two messages. Target: linear in the running
requests at no more than 4 µs each, and flat in the size of the pool.

- Steady decode: every running sequence gets a token in every step; at any time a sixteenth of them begin a block, and
  as many fill one, which is hashed for the prefix cache. Prompt lengths differ, so that these are spread over steps.
- Pool size: 64 running, from 1,000 to 1,000,000 blocks. The free list is shuffled first, so that blocks lie as far
  apart in memory as in a pool that has been used for days.
- Admission: one request with 512 prompt tokens on an otherwise idle scheduler, from its columns of token ids to its
  first token's bytes; cold, and with 496 of them found in the prefix cache.

Times are CPU time of the one thread. Cases run in turn in each of several repeats; figures are medians over repeats.

    .venv/bin/python benchmarks/scheduler.py [--repeats 5] [--profile]
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import mmap
import pstats
import random
import statistics
import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from quire.columns import pack_u32, unpack_u32
from quire.internal.v1 import executor_pb2
from quire.kv_journal import KvJournal, record_bytes
from quire.scheduler.block_pool import BlockPool
from quire.scheduler.kv_cache import KvCache
from quire.scheduler.outputs import OutputRouter
from quire.scheduler.request_checks import SchedulerLimits
from quire.scheduler.scheduler import Scheduler
from quire.scheduler.sequence import Request, RequestKey
from quire.scheduler.step_plan import StepPlan
from quire.v1 import generate_pb2

RUNNING = (1, 4, 16, 64, 256, 1024)
POOLS = (1_000, 10_000, 100_000, 1_000_000)
RUNNING_IN_POOLS = 64
TARGET_US = 4.0
# A pool may cost this much more per step than the smallest one: its blocks are not in the processor's caches.
FLAT = 1.25

BLOCK_SIZE = 16
NUM_STEPS = 64
WARM_UP_STEPS = 4
PROMPT_LENGTH = 512
VOCAB_SIZE = 50_000
EPOCH = 1
GATEWAY = "gateway"
PARTS = ("schedule", "pack", "take in", "publish")


def cpu_ns() -> int:
    """CPU time of this thread: other programs on the machine make it longer only through shared caches."""
    return time.thread_time_ns()


# What reading the clock adds to an interval.
CLOCK_NS = min(-(cpu_ns() - cpu_ns()) for _ in range(1000))


def fake_executor(message: bytes, draw: random.Random) -> bytes:
    """A step's result: any token for each row that samples."""
    plan = executor_pb2.StepRequest.FromString(message).plan
    slots = [slot for slot, samples in zip(unpack_u32(plan.slots), plan.samples, strict=True) if samples]
    token_ids = draw.choices(range(VOCAB_SIZE), k=len(slots))
    result = executor_pb2.StepResult(
        epoch=plan.epoch, step=plan.step, slots=pack_u32(slots), token_ids=pack_u32(token_ids)
    )
    return result.SerializeToString()


@dataclass
class Rig:
    """A scheduler, its outputs and a fake executor; `spent` sums the scheduler's time by part, in ns."""

    num_blocks: int
    draw: random.Random = field(default_factory=lambda: random.Random(1))
    spent: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    num_requests: int = 0

    def __post_init__(self) -> None:
        journal = KvJournal(memoryview(mmap.mmap(-1, self.num_blocks * record_bytes(BLOCK_SIZE))), BLOCK_SIZE)
        cache = KvCache(self.num_blocks, BLOCK_SIZE, journal=journal)
        cache.restore()
        shuffle_free_list(cache.pool, self.draw)
        longest = min(4096, cache.max_num_tokens)
        self.scheduler = Scheduler(cache, SchedulerLimits(longest, max(RUNNING), 1 << 20))
        self.router = OutputRouter()
        self.outputs = self.router.open(GATEWAY)
        self._in_flight: deque[tuple[StepPlan, bytes]] = deque()

    def prompt(self, length: int) -> bytes:
        """Token ids as Submit brings them: a column."""
        return array("I", self.draw.choices(range(VOCAB_SIZE), k=length)).tobytes()

    def submit(self, prompt: bytes, max_tokens: int) -> None:
        params = generate_pb2.SamplingParams(max_tokens=max_tokens, ignore_eos=True, n=1)
        key = RequestKey(GATEWAY, self.num_requests)
        request = Request(key, str(key.number), 0, params, frozenset({2}))
        self.num_requests += 1
        self.scheduler.add_request(request, unpack_u32(prompt), {0: []})

    def plan(self) -> bool:
        """Plans a step and has the executor compute it; False if there was nothing to plan."""
        started = cpu_ns()
        plan = self.scheduler.schedule(0)
        scheduled = cpu_ns()
        if plan is None:
            return False
        counted = plan.num_prefill_tokens + plan.num_decode_tokens
        message = executor_pb2.StepRequest(plan=plan.to_proto(EPOCH)).SerializeToString()
        packed = cpu_ns()
        assert counted > 0
        self.spent["schedule"] += scheduled - started - CLOCK_NS
        self.spent["pack"] += packed - scheduled - CLOCK_NS
        self._in_flight.append((plan, fake_executor(message, self.draw)))
        return True

    async def take_in(self) -> None:
        """Takes in the oldest result in flight and makes the gateway's message of it."""
        plan, message = self._in_flight.popleft()
        started = cpu_ns()
        events = self.scheduler.update_from_output(plan, executor_pb2.StepResult.FromString(message))
        taken = cpu_ns()
        self.router.publish(events)
        outputs = await self.outputs.next_message()
        assert outputs is not None
        outputs.SerializeToString()
        published = cpu_ns()
        self.spent["take in"] += taken - started - CLOCK_NS
        self.spent["publish"] += published - taken - CLOCK_NS

    async def step(self) -> None:
        """One plan and one result, with two steps in flight in between."""
        self.plan()
        if len(self._in_flight) == 2:
            await self.take_in()

    async def drain(self) -> None:
        """Aborts everything, waits for the steps in flight and checks that every block came back."""
        self.scheduler.abort_gateway(GATEWAY)
        while self._in_flight:
            plan, message = self._in_flight.popleft()
            self.scheduler.update_from_output(plan, executor_pb2.StepResult.FromString(message))
        self.scheduler.check_integrity()

    async def steady_decode(self, num_running: int) -> dict[str, float]:
        """µs per step by part while `num_running` sequences decode."""
        for i in range(num_running):
            self.submit(self.prompt(BLOCK_SIZE + i % BLOCK_SIZE), max_tokens=2048)
        for _ in range(WARM_UP_STEPS):
            await self.step()
        self.spent = dict.fromkeys(PARTS, 0)
        for _ in range(NUM_STEPS):
            await self.step()
        assert self.scheduler.num_preemptions == 0
        await self.drain()
        return {part: spent / NUM_STEPS / 1e3 for part, spent in self.spent.items()}

    async def admission(self, prompt: bytes) -> float:
        """µs for one request of one output token."""
        self.spent = dict.fromkeys(PARTS, 0)
        started = cpu_ns()
        self.submit(prompt, max_tokens=1)
        submitted = cpu_ns() - started - CLOCK_NS
        self.plan()
        await self.take_in()
        return (submitted + sum(self.spent.values())) / 1e3


def shuffle_free_list(pool: BlockPool, draw: random.Random) -> None:
    blocks = [pool.take() for _ in range(pool.num_blocks)]
    draw.shuffle(blocks)
    for block in blocks:
        pool.release(block)


async def admissions(rig: Rig, *, cached: bool) -> float:
    """Median µs of an admission, cold or hit."""
    prompts = [rig.prompt(PROMPT_LENGTH) for _ in range(16)]
    for prompt in prompts if cached else ():
        await rig.admission(prompt)
    return statistics.median([await rig.admission(prompt) for prompt in prompts])


async def measure(repeats: int) -> dict[str, object]:
    """All cases in turn, `repeats` times; medians."""
    rigs = {num_blocks: Rig(num_blocks) for num_blocks in POOLS}
    steady: dict[int, list[dict[str, float]]] = {num_running: [] for num_running in RUNNING}
    pools: dict[int, list[dict[str, float]]] = {num_blocks: [] for num_blocks in POOLS}
    cold: list[float] = []
    hit: list[float] = []
    for _ in range(repeats):
        for num_running in RUNNING:
            steady[num_running].append(await rigs[100_000].steady_decode(num_running))
        for num_blocks, rig in rigs.items():
            pools[num_blocks].append(await rig.steady_decode(RUNNING_IN_POOLS))
        cold.append(await admissions(rigs[10_000], cached=False))
        hit.append(await admissions(rigs[10_000], cached=True))

    def median(samples: list[dict[str, float]], of: Callable[[dict[str, float]], float]) -> float:
        return round(statistics.median(of(sample) for sample in samples), 2)

    return {
        "step_us": {n: median(samples, lambda parts: sum(parts.values())) for n, samples in steady.items()},
        "parts_us": {n: {part: median(s, lambda parts, p=part: parts[p]) for part in PARTS} for n, s in steady.items()},
        "pool_step_us": {n: median(samples, lambda parts: sum(parts.values())) for n, samples in pools.items()},
        "admission_us": {"cold": round(statistics.median(cold), 1), "hit": round(statistics.median(hit), 1)},
    }


def report(result: dict) -> None:
    """Prints the tables and the JSON line."""
    steps, pools = result["step_us"], result["pool_step_us"]
    print(f"{'running':>9}{'µs/step':>10}{'µs/request':>12}" + "".join(f"{part:>11}" for part in PARTS))
    for n, step in steps.items():
        parts = "".join(f"{result['parts_us'][n][part]:>11.1f}" for part in PARTS)
        print(f"{n:>9,}{step:>10.1f}{step / n:>12.2f}{parts}")
    print(f"\n{'blocks':>9}{'µs/step':>10}   ({RUNNING_IN_POOLS} running)")
    for n, step in pools.items():
        print(f"{n:>9,}{step:>10.1f}")
    cold, hit = result["admission_us"].values()
    print(f"\nadmission of {PROMPT_LENGTH} tokens: {cold:.0f} µs cold, {hit:.0f} µs with a prefix hit")
    # The slope: what one more request costs, without what every step costs.
    first, last = RUNNING[0], RUNNING[-1]
    result["us_per_request"] = round((steps[last] - steps[first]) / (last - first), 3)
    result["largest_pool_ratio"] = round(pools[POOLS[-1]] / pools[POOLS[0]], 2)
    result["meets_target"] = result["us_per_request"] <= TARGET_US and result["largest_pool_ratio"] <= FLAT
    print(f"{result['us_per_request']:.2f} µs per further request, target {TARGET_US:.0f}")
    print(json.dumps(result))


def profile(num_running: int = 256) -> None:
    """Prints the top of cProfile over steady decode; it slows calls down more than loops."""
    profiler = cProfile.Profile()
    rig = Rig(10_000)
    profiler.enable()
    asyncio.run(rig.steady_decode(num_running))
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(30)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="print where the time goes instead")
    arguments = parser.parse_args()
    if arguments.profile:
        profile()
    else:
        report(asyncio.run(measure(arguments.repeats)))


if __name__ == "__main__":
    main()
