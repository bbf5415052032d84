"""What the settings of a batch cost: `python -P benchmarks/tuning.py`, which writes its table into docs/operations.md.

The physics. A step reads all weights once, whatever is in it, and then computes each of its tokens. So sequences that
run together share the reading (more tokens per second), and each waits for all (a longer step: ITL). A prompt in a step
is arithmetic that every decode in the step waits for: a small token budget bounds that wait and makes prompts take more
steps (TTFT). Blocks are the unit of everything in the cache: a sequence's last block is half empty on average, and
a shared prefix is found in whole blocks only.

The workload. Random weights of SmolLM-135M's shape in bfloat16 (or --model), a KV pool of 512 MiB. 16 clients, each
with one request after the other, streaming: 24 requests, whose prompts have 120 tokens in common and 72 of their own;
three of them have 768 of their own. Answers of 16 to 64 tokens. One more request comes before and is not counted: it
puts the common tokens into the prefix cache. Clients are in this process and share the machine with the server.

Each setting has a server of its own in each round; settings take turns within a round, so what the machine does
meanwhile falls on all of them. A figure is the median over rounds, its ratio the median of the rounds' own ratios to
the default.

The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

# The folder of this file: -P keeps it off the path.
sys.path.insert(0, str(Path(__file__).parent))
from peers.checkpoints import make_checkpoint

from quire.bench.backends import CompletionsBackend
from quire.bench.load import run_load
from quire.bench.prompts import BenchRequest, find_vocab_size, random_prompts
from quire.bench.settings import ServeBenchSettings
from quire.bench.statistics import summarise
from quire.bench.timeline import Timeline
from quire.config import ServeSettings
from quire.internal.v1 import scheduler_pb2, scheduler_pb2_grpc
from quire.rpc import open_sync_channel
from quire.supervisor import Supervisor

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "operations.md"
BEGIN, END = "<!-- tuning: begin -->", "<!-- tuning: end -->"
SHAPE = "smollm-135m"
POOL = "512MiB"

# What differs from the default; the defaults are in quire/config.py.
SETTINGS: tuple[dict[str, int], ...] = (
    {},
    {"max_num_seqs": 4},
    {"max_num_seqs": 8},
    {"max_num_batched_tokens": 64},
    {"max_num_batched_tokens": 128},
    {"max_num_batched_tokens": 2048},
    {"block_size": 4},
    {"block_size": 64},
    {"block_size": 128},
    {"max_model_len": 1024},
)
CLIENTS, REQUESTS, LONG_EVERY = 16, 24, 8
COMMON_TOKENS, OWN_TOKENS, LONG_TOKENS = 120, 72, 768
OUTPUT_TOKENS = range(16, 65)
REQUEST_TIMEOUT_S = 300.0
# No round begins that would end later than this after the first began.
MOST_S = 460.0
# Seconds between two looks at the block tables.
LOOK_S = 0.1


@dataclass(frozen=True)
class Figures:
    """What one run of the workload gave."""

    tokens_per_s: float
    ttft_p50_ms: float
    itl_p50_ms: float
    itl_p99_ms: float
    # Of the prompts' tokens, from 0 to 1.
    cached_share: float
    # The most that was held at any look.
    peak_slots: float
    # Requests of full length that the pool holds.
    full_requests: float


# A column: its heading, the field, and how the value is written.
COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("output tokens/s", "tokens_per_s", ",.0f"),
    ("TTFT p50, ms", "ttft_p50_ms", ",.0f"),
    ("ITL p50, ms", "itl_p50_ms", ",.0f"),
    ("ITL p99, ms", "itl_p99_ms", ",.0f"),
    ("prompt tokens from the cache", "cached_share", ".0%"),
    ("most slots held", "peak_slots", ",.0f"),
    ("full-length requests in the pool", "full_requests", ",.1f"),
)


def workload(vocab_size: int, num_requests: int) -> list[BenchRequest]:
    """The uncounted request and then the counted ones; always the same."""
    rng = np.random.default_rng(0)
    (common,) = random_prompts(rng, 1, COMMON_TOKENS, vocab_size)
    requests = []
    for index in range(num_requests + 1):
        own = LONG_TOKENS if index % LONG_EVERY == LONG_EVERY - 1 else OWN_TOKENS
        length = int(rng.integers(OUTPUT_TOKENS.start, OUTPUT_TOKENS.stop))
        requests.append(BenchRequest(common + random_prompts(rng, 1, own, vocab_size)[0], length))
    return requests


def measure(model: str, own: dict[str, int], requests: list[BenchRequest]) -> Figures:
    """One server with these settings, and the workload once."""
    given = {"model": model, "dtype": "bfloat16", "port": 0, "grpc_port": 0, "log_level": "error"}
    settings = ServeSettings.load({**given, "kv_cache_memory": POOL, **own})
    with Supervisor(settings) as supervisor:
        url = f"http://127.0.0.1:{supervisor.start(gateway=settings)['port']}"
        with open_sync_channel(supervisor.scheduler_address) as channel:
            scheduler = scheduler_pb2_grpc.SchedulerServiceStub(channel)

            def kv_state() -> scheduler_pb2.GetKvCacheStateResponse:
                return scheduler.GetKvCacheState(scheduler_pb2.GetKvCacheStateRequest(), timeout=30)

            timelines, peak_blocks = uvloop.run(_run(url, settings.model_name, requests, kv_state))
            state = kv_state()
    return _figures(timelines, settings, peak_blocks, state.num_blocks)


async def _run(
    url: str,
    model: str,
    requests: list[BenchRequest],
    kv_state: Callable[[], scheduler_pb2.GetKvCacheStateResponse],
) -> tuple[list[Timeline], int]:
    """The counted requests, and the most blocks that were held."""
    backend = CompletionsBackend(ServeBenchSettings.load({"base_url": url, "ignore_eos": True}), model)
    first, *counted = requests
    peak = 0

    async def look() -> None:
        nonlocal peak
        while True:
            peak = max(peak, (await asyncio.to_thread(kv_state)).held_blocks)
            await asyncio.sleep(LOOK_S)

    async def load(part: list[BenchRequest]) -> list[Timeline]:
        return await run_load(backend, part, [0.0] * len(part), CLIENTS, REQUEST_TIMEOUT_S, lambda _: None)

    try:
        await load([first])
        watch = asyncio.create_task(look())
        try:
            return await load(counted), peak
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
    finally:
        await backend.close()


def _figures(timelines: list[Timeline], settings: ServeSettings, peak_blocks: int, num_blocks: int) -> Figures:
    for timeline in timelines:
        if not timeline.succeeded:
            raise RuntimeError(f"a request failed: {timeline.error}")
    result = summarise(timelines, ["ttft", "itl"], [50, 99])
    context = settings.max_model_len or int(
        json.loads((Path(settings.model) / "config.json").read_text())["max_position_embeddings"]
    )
    return Figures(
        tokens_per_s=result["output_throughput"],
        ttft_p50_ms=result["p50_ttft_ms"],
        itl_p50_ms=result["p50_itl_ms"],
        itl_p99_ms=result["p99_itl_ms"],
        cached_share=result["total_cached_tokens"] / result["total_input_tokens"],
        peak_slots=float(peak_blocks * settings.block_size),
        full_requests=num_blocks * settings.block_size / context,
    )


def table(rounds: list[list[Figures]], note: str) -> tuple[str, list[dict[str, Any]]]:
    """As Markdown, and as what the JSON line says."""
    lines = [note, "", f"| | {' | '.join(heading for heading, _, _ in COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    entries = []
    for index, own in enumerate(SETTINGS):
        name = ", ".join(f"{key} {value}" for key, value in own.items()) or "default"
        cells, entry = [], {"setting": own}
        for _, field, style in COLUMNS:
            values = [getattr(one[index], field) for one in rounds]
            ratios = [getattr(one[index], field) / getattr(one[0], field) for one in rounds]
            value, ratio = statistics.median(values), statistics.median(ratios)
            entry |= {field: value, f"{field}_ratio": ratio}
            cells.append(f"{value:{style}}" + (f" ({ratio:.2f})" if own else ""))
        lines.append(f"| {name} | {' | '.join(cells)} |")
        entries.append(entry)
    return "\n".join(lines), entries


def _note(num_rounds: int, quick: bool) -> str:
    kernel = platform.release().split("-")[0]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Linux {kernel}, the clients on the same machine"
    rounds = f"{num_rounds} rounds" if num_rounds > 1 else "one round"
    warning = "**A quick run on a busy machine: only its order of size means anything.** " if quick else ""
    text = f"{warning}On {machine}; medians of {rounds}, in brackets the ratio to the default of the same round."
    return textwrap.fill(text, 120)


def main() -> None:
    """Measures all settings in turn, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint's folder; default: random weights of SmolLM-135M's shape")
    parser.add_argument("--rounds", type=int, default=3, help=f"at most; as many as fit {MOST_S:.0f} s")
    parser.add_argument("--quick", action="store_true", help="one round of few requests; the table says so")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Path(os.environ.get("QUIRE_PEERS_DIR", folder)) / "checkpoints"
        model = options.model or str(make_checkpoint(SHAPE, checkpoints))
        requests = workload(find_vocab_size(model), LONG_EVERY if options.quick else REQUESTS)
        measure(model, {}, requests[:2])  # brings files into the page cache
        rounds: list[list[Figures]] = []
        began = time.monotonic()
        for number in range(1 if options.quick else options.rounds):
            if number and (time.monotonic() - began) * (number + 1) / number > MOST_S:
                break
            rounds.append([])
            for own in SETTINGS:
                rounds[-1].append(measure(model, own, requests))
                print(f"round {number}: {own or 'default'}: {rounds[-1][-1]}", file=sys.stderr, flush=True)
    text, entries = table(rounds, _note(len(rounds), options.quick))
    before, rest = DOCUMENT.read_text().split(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{text}\n{rest[rest.index(END) :]}")
    print(text)
    print(json.dumps(entries))


if __name__ == "__main__":
    main()
