"""What a tenant feels of another's flood, and what an overload costs.

Fairness. Tenant B keeps 4 streams going, below its half of 16 slots. In the calm case tenant A keeps 12, which is what
B leaves, so the batch is full and nobody waits: B's time to first token is then what a full server takes for a prompt.
In a flood A keeps 60 instead; as many sequences run as before, and 48 of A's wait. What B's median TTFT rises by is the
price of A's flood: the least it can be is what a slot has to be taken back for, which is a step. With fcfs B waits
behind A's queue. Calm and flood take turns, and medians of the rounds are compared, since the machine is shared.

Overload. Peak is the completed tokens per second of a closed loop that keeps the slots full. Then requests come at ten
times the rate that peak completes, whatever becomes of them. Goodput counts tokens of requests that were completed.
A refusal costs the gateway a parsed head and an answer; the goal is 90 % of peak, and an answer of 429 in 100 ms.

    python benchmarks/fairness.py [--seconds 8] [--rounds 3] [--only fair fcfs overload]

The last line is JSON. The clients are in this process and share the machine with the server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import uvloop

from quire.bench.http_client import HttpClient
from quire.config import ServeSettings
from quire.errors import ServiceUnavailableError
from quire.supervisor import Supervisor

NUM_SLOTS = 16
B_STREAMS, A_CALM, A_FLOOD = 4, 12, 60
PROMPT_TOKENS = 128
# Answers of one length would end together, and their successors' prompts wait for each other.
OUTPUT_TOKENS = range(32, 97)
VOCABULARY = range(300, 1900)
WARM_UP_S = 2.0
OVERLOAD = 10
KEYS = {"a": "benchmark-key-of-tenant-a", "b": "benchmark-key-of-tenant-b"}
# The goals.
MOST_RISE, LEAST_GOODPUT, MOST_REFUSAL_MS = 0.25, 0.9, 100


@dataclass
class Outcome:
    """What became of requests."""

    # Seconds from sending to the first token, or to the end of a refusal.
    ttfts: list[float] = field(default_factory=list)
    refusals: list[float] = field(default_factory=list)
    # Of what was completed.
    num_tokens: int = 0
    # Connections that broke; a server may close an idle one just as it is used again.
    num_broken: int = 0


@contextlib.contextmanager
def serving(policy: str) -> Iterator[str]:
    """The URL of a server with both tenants' keys."""
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.yaml"
        entries = [{"sha256": hashlib.sha256(key.encode()).hexdigest(), "tenant": name} for name, key in KEYS.items()]
        keys.write_text(json.dumps(entries))  # JSON is YAML
        settings = ServeSettings.load(
            {
                "port": 0,
                "grpc_port": 0,
                "log_level": "error",
                "scheduling_policy": policy,
                "max_num_seqs": NUM_SLOTS,
                "api_keys": keys,
            }
        )
        with Supervisor(settings) as supervisor:
            yield f"http://127.0.0.1:{supervisor.start(gateway=settings)['port']}"


@contextlib.asynccontextmanager
async def client(url: str, tenant: str) -> AsyncIterator[HttpClient]:
    """A tenant's."""
    http = HttpClient(url, {"authorization": f"Bearer {KEYS[tenant]}"})
    try:
        yield http
    finally:
        http.close()


async def ask(http: HttpClient, draw: random.Random, outcome: Outcome, *, stream: bool = True) -> bool:
    """One request with a prompt of its own; says whether it was completed."""
    num_tokens = draw.choice(OUTPUT_TOKENS)
    body = {
        "model": "quire-tiny",
        "prompt": draw.choices(VOCABULARY, k=PROMPT_TOKENS),
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "stream": stream,
    }
    first: list[float] = []
    sent = time.perf_counter()
    try:
        status = await http.post("/v1/completions", msgspec.json.encode(body), lambda _, at: first.append(at))
    except ServiceUnavailableError:
        outcome.num_broken += 1
        return False
    if status == 200:
        outcome.ttfts.append(first[0] - sent)
        outcome.num_tokens += num_tokens
    elif status == 429:
        outcome.refusals.append(time.perf_counter() - sent)
    else:
        raise RuntimeError(f"status {status}")
    return status == 200


async def keep_going(http: HttpClient, seed: int, outcome: Outcome) -> None:
    """One request after the other."""
    draw = random.Random(seed)
    while True:
        if not await ask(http, draw, outcome):
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def streams(http: HttpClient, count: int, seed: int, outcome: Outcome) -> AsyncIterator[None]:
    """So many closed loops while the block runs."""
    tasks = [asyncio.create_task(keep_going(http, seed * 1000 + index, outcome)) for index in range(count)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for failure in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(failure, asyncio.CancelledError):
                raise failure


async def ttft_of_b(url: str, num_a: int, seconds: float, seed: int) -> float:
    """B's median TTFT beside so many streams of A, in seconds."""
    outcome = Outcome()
    async with client(url, "a") as a, client(url, "b") as b, streams(a, num_a, seed, Outcome()):
        await asyncio.sleep(WARM_UP_S)
        async with streams(b, B_STREAMS, seed + 1, outcome):
            await asyncio.sleep(seconds)
    return statistics.median(outcome.ttfts)


async def measure_fairness(policy: str, seconds: float, rounds: int) -> dict[str, float]:
    """B's TTFT beside a calm and a flooding A, in milliseconds."""
    calm, flood = [], []
    with serving(policy) as url:
        await ttft_of_b(url, A_CALM, WARM_UP_S, 0)
        for number in range(1, rounds + 1):
            calm.append(await ttft_of_b(url, A_CALM, seconds, 10 * number))
            flood.append(await ttft_of_b(url, A_FLOOD, seconds, 10 * number + 5))
    result = {"calm_ms": 1e3 * statistics.median(calm), "flood_ms": 1e3 * statistics.median(flood)}
    return result | {"rise": result["flood_ms"] / result["calm_ms"] - 1}


async def goodput_of(url: str, seconds: float, outcome: Outcome) -> float:
    """Tokens per second of what is completed in the time that follows."""
    before, began = outcome.num_tokens, time.perf_counter()
    await asyncio.sleep(seconds)
    return (outcome.num_tokens - before) / (time.perf_counter() - began)


async def flood(http: HttpClient, per_second: float, outcome: Outcome) -> None:
    """Requests at a rate, whatever becomes of them."""
    draw = random.Random(1)
    next_at = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        while True:
            next_at += draw.expovariate(per_second)
            await asyncio.sleep(max(next_at - time.perf_counter(), 0))
            group.create_task(ask(http, draw, outcome, stream=False))


async def measure_overload(seconds: float, rounds: int) -> dict[str, float]:
    """Peak and goodput in tokens per second, the time to a refusal in milliseconds."""
    peaks, goodputs, refusals, num_broken = [], [], Outcome().refusals, 0
    with serving("fcfs") as url:
        for number in range(rounds):
            async with client(url, "a") as http:
                outcome = Outcome()
                async with streams(http, 2 * NUM_SLOTS, number, outcome):
                    await asyncio.sleep(2 * WARM_UP_S)
                    peaks.append(await goodput_of(url, seconds, outcome))
                outcome = Outcome()
                task = asyncio.create_task(flood(http, OVERLOAD * peaks[-1] / statistics.mean(OUTPUT_TOKENS), outcome))
                await asyncio.sleep(2 * WARM_UP_S)
                goodputs.append(await goodput_of(url, seconds, outcome))
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                refusals += outcome.refusals
                num_broken += outcome.num_broken
    ranks = statistics.quantiles(refusals, n=100)
    return {
        "peak_tokens_per_s": statistics.median(peaks),
        "goodput_tokens_per_s": statistics.median(goodputs),
        "goodput_of_peak": statistics.median(g / p for g, p in zip(goodputs, peaks, strict=True)),
        "num_refused": len(refusals),
        "num_broken": num_broken,
        "refusal_p50_ms": 1e3 * statistics.median(refusals),
        "refusal_p99_ms": 1e3 * ranks[98],
    }


async def measure(parts: list[str], seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    """The parts that are asked for."""
    results = {}
    for policy in ("fair", "fcfs"):
        if policy in parts:
            results[policy] = result = await measure_fairness(policy, seconds, rounds)
            print(
                f"{policy}: B's TTFT p50 {result['calm_ms']:.0f} ms calm, {result['flood_ms']:.0f} ms in A's flood "
                f"({result['rise']:+.0%}; goal of fair: at most {MOST_RISE:+.0%})"
            )
    if "overload" in parts:
        results["overload"] = result = await measure_overload(seconds, rounds)
        print(
            f"{OVERLOAD} times overload: {result['goodput_tokens_per_s']:.0f} of {result['peak_tokens_per_s']:.0f} "
            f"tokens/s ({result['goodput_of_peak']:.0%}; goal {LEAST_GOODPUT:.0%}); 429 after "
            f"{result['refusal_p50_ms']:.1f} ms p50, {result['refusal_p99_ms']:.1f} ms p99 (goal {MOST_REFUSAL_MS} ms)"
        )
    return results


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=("fair", "fcfs", "overload"))
    arguments = parser.parse_args()
    parts = arguments.only or ["fair", "fcfs", "overload"]
    print(json.dumps(uvloop.run(measure(parts, arguments.seconds, arguments.rounds))))


if __name__ == "__main__":
    main()
