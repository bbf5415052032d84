"""More clients than there is room for, tenants that take what they get, prefixes that are not theirs (21 to 24)."""

from __future__ import annotations

import asyncio
import hashlib
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from support.chaos.baseline import Baseline
from support.chaos.measurements import record
from support.chaos.server import ChaosServer, chaos_server
from support.chaos.streams import CLIENT_TIMEOUT_S, Clients, answers, check_equal, events, rest
from support.chaos.workload import STORY, mixed_workload

from quire.v1 import generate_pb2

SLOTS, QUEUE = 4, 8
COMPLETIONS = "/v1/completions"
# Makes all hashes of blocks one of 256. It is in the scheduler's process before anything of it is imported.
_SHORT_HASHES = """
import sys

if "scheduler" in sys.orig_argv:
    from quire.scheduler import prefix_cache

    whole = prefix_cache.chain_hash
    prefix_cache.chain_hash = lambda *parts: whole(*parts)[:1].ljust(32, b"\\0")
"""


def body(number: int, **options: Any) -> dict[str, Any]:
    """A request whose answer is its own."""
    own = {"prompt": f"{number} {STORY}", "max_tokens": 32, "seed": number, "ignore_eos": True}
    return {"model": "quire-tiny", **own, **options}


# Case 21


@dataclass(frozen=True)
class Outcome:
    """How one request of a rush ended."""

    status: int
    text: str
    seconds: float
    retry_after: str | None = None


@pytest.fixture(scope="module")
def small_server() -> Iterator[ChaosServer]:
    """Room for 12 requests, four of which run."""
    with chaos_server("--max-num-seqs", str(SLOTS), "--max-queued-requests", str(QUEUE)) as started:
        asyncio.run(_rush(started, SLOTS))
        yield started


def test_21_overload(small_server):
    """Case 21: ten times as many requests as there is room for, all at once, whole and streamed, REST and gRPC.

    Passes if at least as many as there is room for are answered, each as it is answered alone; all others get 429 with
    retry-after (RESOURCE_EXHAUSTED) and never half an answer; and the server is as it was.
    """
    baseline = Baseline.take(small_server)
    room = SLOTS + QUEUE
    alone = [asyncio.run(_rush(small_server, 1, first=number))[0] for number in range(room)]
    peak_started = time.monotonic()
    at_peak = asyncio.run(_rush(small_server, room))
    peak = sum(outcome.status == 200 for outcome in at_peak) / (time.monotonic() - peak_started)
    started = time.monotonic()
    rushed = asyncio.run(_rush(small_server, 10 * room))
    goodput = sum(outcome.status == 200 for outcome in rushed) / (time.monotonic() - started)
    assert {outcome.status for outcome in at_peak} == {200}
    served = [outcome for outcome in rushed if outcome.status == 200]
    refused = [outcome for outcome in rushed if outcome.status != 200]
    assert len(served) >= room
    assert {outcome.status for outcome in refused} == {429}
    assert all(int(outcome.retry_after or 0) >= 1 for outcome in refused)
    for number, outcome in enumerate(rushed):
        if outcome.status == 200 and number < room:
            assert outcome.text == alone[number].text
    assert asyncio.run(_refused_by_grpc(small_server)) == grpc.StatusCode.RESOURCE_EXHAUSTED
    record(21, "goodput of a tenfold rush against a full server", goodput / peak, "ratio", ">= 0.9")
    times = sorted(outcome.seconds * 1000 for outcome in refused)
    record(21, "time to a refusal, median", statistics.median(times), "ms", "<= 100")
    record(21, "time to a refusal, 99 %", times[int(len(times) * 0.99)], "ms", "<= 100")
    baseline.check(small_server)


async def _rush(server: ChaosServer, count: int, first: int = 0) -> list[Outcome]:
    """So many requests at once, every other one streamed."""
    async with Clients(server) as clients:
        return await asyncio.gather(*(_try(clients, number) for number in range(first, first + count)))


async def _try(clients: Clients, number: int) -> Outcome:
    started = time.monotonic()
    streamed = number % 2 == 1
    request = clients.http.stream("POST", COMPLETIONS, json=body(number, stream=streamed))
    async with request as response:
        seconds = time.monotonic() - started
        retry_after = response.headers.get("retry-after")
        if response.status_code != 200:
            await response.aread()
            return Outcome(response.status_code, "", seconds, retry_after)
        if streamed:
            lines = [line async for line in response.aiter_lines() if line]
            assert lines[-1] == "data: [DONE]" and not any('"error"' in line for line in lines)
            return Outcome(200, "", seconds)
        await response.aread()
        return Outcome(200, response.json()["choices"][0]["text"], seconds)


async def _refused_by_grpc(server: ChaosServer) -> grpc.StatusCode:
    """What a gRPC client is told while the server is full."""
    async with Clients(server) as clients:
        holders = [asyncio.create_task(_hold(clients, number)) for number in range(SLOTS + QUEUE)]
        try:
            while server.kv_state().num_requests_waiting < QUEUE:
                await asyncio.sleep(0.05)
            call = clients.stub.Generate(generate_pb2.GenerateRequest(text=STORY), timeout=CLIENT_TIMEOUT_S)
            await call.read()
            code: grpc.StatusCode = await call.code()
            return code
        finally:
            for holder in holders:
                holder.cancel()
            await asyncio.gather(*holders, return_exceptions=True)


async def _hold(clients: Clients, number: int) -> None:
    async for _ in events(clients, COMPLETIONS, body(number, max_tokens=1500)):
        pass


# Cases 22 and 23


KEYS = {"flood": "key-of-the-flood", "calm": "key-of-the-calm"}


@pytest.fixture(scope="module")
def tenants_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosServer]:
    """Two tenants of equal weight."""
    path = tmp_path_factory.mktemp("keys") / "keys.yaml"
    entries = [{"tenant": name, "sha256": hashlib.sha256(key.encode()).hexdigest()} for name, key in KEYS.items()]
    path.write_text(yaml.safe_dump(entries))
    with chaos_server(
        "--api-keys",
        str(path),
        "--scheduling-policy",
        "fair",
        "--max-num-seqs",
        str(SLOTS),
        "--max-queued-requests",
        "500",
    ) as started:
        yield started


def test_22_tenant_flood(tenants_server):
    """Case 22: one tenant sends 60 requests at once, another one after the other.

    Passes if all eight of the calm tenant are answered, as they are alone, while most of the flood still waits: in
    the order of arrival they would be behind it.
    """
    calm_alone, times_alone, _ = asyncio.run(_calm_beside_flood(tenants_server, num_flood=SLOTS))
    calm, times, done_before = asyncio.run(_calm_beside_flood(tenants_server, num_flood=60))
    assert calm == calm_alone
    assert done_before <= 40, "the flood was served first"
    ratio = statistics.median(times) / statistics.median(times_alone)
    record(22, "time to the first token beside a flood of 60, against beside 4 requests", ratio, "ratio", "<= 1.25")


async def _calm_beside_flood(server: ChaosServer, num_flood: int) -> tuple[list[str], list[float], int]:
    """The calm tenant's texts and times to the first token, and how many of the flood had ended by then."""
    async with Clients(server, KEYS["flood"]) as flooding, Clients(server, KEYS["calm"]) as calm:
        flood = [
            asyncio.create_task(_text(flooding, body(number, max_tokens=64, stream=True)))
            for number in range(num_flood)
        ]
        while server.kv_state().num_requests_running < SLOTS:
            await asyncio.sleep(0.02)
        texts, times = [], []
        for number in range(8):
            text, seconds = await _text(calm, body(1000 + number, max_tokens=8))
            texts.append(text)
            times.append(seconds)
        done_before = sum(task.done() for task in flood)
        await asyncio.gather(*flood)
        return texts, times, done_before


async def _text(clients: Clients, request: dict[str, Any]) -> tuple[str, float]:
    """A stream's text, and the seconds to its first frame."""
    started, first, text = time.monotonic(), None, ""
    async for event in events(clients, COMPLETIONS, request):
        first = first or time.monotonic() - started
        text += "".join(choice["text"] for choice in event["choices"])
    assert first is not None
    return text, first


def test_23_cross_tenant_prefix(tenants_server):
    """Case 23: a tenant asks what another one has asked.

    Passes if it finds none of the other's prefix (0 cached tokens) with the salt of its own choice as without one, and
    all of its own; and the answers are equal.
    """
    prompt = "What one tenant computed is nothing that another one may notice, not even by the time. " * 4

    async def cached(tenant: str, **options: Any) -> tuple[int, str]:
        async with Clients(tenants_server, KEYS[tenant]) as clients:
            request = body(23, prompt=prompt, temperature=0, **options)
            answer = (await clients.http.post(COMPLETIONS, json=request)).json()
            return answer["usage"]["prompt_tokens_details"]["cached_tokens"], answer["choices"][0]["text"]

    async def ask_all() -> tuple[list[int], set[str]]:
        asked = [("flood", {}), ("flood", {}), ("calm", {}), ("calm", {"cache_salt": "flood"}), ("calm", {})]
        found = [await cached(tenant, **options) for tenant, options in asked]
        return [tokens for tokens, _ in found], {text for _, text in found}

    (first, own, others, salted, own_too), texts = asyncio.run(ask_all())
    assert (first, others, salted) == (0, 0, 0)
    assert own > 0 and own_too == own
    assert len(texts) == 1


# Case 24


def test_24_hash_collisions(tmp_path: Path, reference):
    """Case 24: hashes of blocks have 8 bits, so that different prefixes collide all the time.

    Passes if every answer is that of a server with whole hashes, and no new prompt finds a block.
    """
    (tmp_path / "sitecustomize.py").write_text(_SHORT_HASHES)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    with chaos_server(env={"PYTHONPATH": os.pathsep.join(paths)}) as server:
        check_equal(asyncio.run(answers(server, mixed_workload())), reference)

        async def cached_tokens() -> list[int]:
            async with Clients(server) as clients:
                # Their first tokens differ, so that they have no block in common.
                requests = [body(number, max_tokens=1, prompt=[300 + number] * 100) for number in range(200)]
                found = [(await clients.http.post(COMPLETIONS, json=request)).json() for request in requests]
                return [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in found]

        assert asyncio.run(cached_tokens()) == [0] * 200
        again = asyncio.run(answers(server, {"again": rest(COMPLETIONS, **body(1), stream=True)}))
        assert again["again"]["usage"]["completion_tokens"] == 32
