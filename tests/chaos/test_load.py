"""More requests than the server can do, and tenants that do not know each other (cases 21 to 24)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest
from support.chaos.baseline import Baseline
from support.chaos.server import ChaosServer, chaos_server
from support.chaos.streams import Clients, answers, check_equal, events, rest
from support.chaos.workload import mixed_workload

from quire.v1 import generate_pb2

KEYS = {"flood": "key-of-flood", "calm": "key-of-calm"}
# Long enough that the clients, on the same machine, can offer ten times what the server does.
TOKENS = 192
# Requests that one tenant has in the server all the time.
FLOOD = 96
PROMPTS = [f"The capital of country number {i} is" for i in range(16)]


def complete(prompt: str, **body: object) -> dict[str, object]:
    return {"model": "quire-tiny", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, **body}


@dataclass
class Outcome:
    """What became of requests."""

    completed: int = 0
    refused: int = 0


def test_21_overload():
    """Case 21: ten times as many requests as the server can do, after as many as it can.

    Passes if every request is either answered, with the right text, or refused with 429 and a retry-after
    (RESOURCE_EXHAUSTED on gRPC), some of both, and the baseline is back. `benchmarks/fairness.py` measures goodput and
    how soon refusals come.
    """
    with chaos_server("--max-num-seqs", "16", "--max-queued-requests", "32") as server:
        asyncio.run(answers(server, mixed_workload(40)))
        baseline = Baseline.take(server)
        asyncio.run(_overload(server))
        baseline.check(server)


async def _overload(server: ChaosServer) -> None:
    async with Clients(server) as clients:
        texts = [await _ask(clients, prompt) for prompt in PROMPTS]
        peak = await _closed_loop(clients, texts, num_clients=32, count=96)
        outcome = Outcome()
        began = time.monotonic()
        pending: list[asyncio.Task[None]] = []
        for i in range(int(peak * 10 * 4)):  # for about four seconds, whatever comes of them
            pending.append(asyncio.create_task(_try(clients, i, texts, outcome)))
            await asyncio.sleep(max(began + i / (10 * peak) - time.monotonic(), 0))
        await asyncio.gather(*pending)
        assert outcome.refused > 0
        assert outcome.completed >= 16
        assert outcome.completed + outcome.refused == len(pending)


async def _ask(clients: Clients, prompt: str) -> str:
    answer = await clients.http.post("/v1/completions", json=complete(prompt))
    answer.raise_for_status()
    return str(answer.json()["choices"][0]["text"])


async def _closed_loop(clients: Clients, texts: list[str], num_clients: int, count: int) -> float:
    """Requests per second when so many clients ask one after the other."""
    numbers = iter(range(count))

    async def work() -> None:
        for i in numbers:
            assert await _ask(clients, PROMPTS[i % len(PROMPTS)]) == texts[i % len(PROMPTS)]

    began = time.monotonic()
    await asyncio.gather(*(work() for _ in range(num_clients)))
    return count / (time.monotonic() - began)


async def _try(clients: Clients, i: int, texts: list[str], outcome: Outcome) -> None:
    """One request, every fourth over gRPC."""
    prompt, text = PROMPTS[i % len(PROMPTS)], texts[i % len(PROMPTS)]
    if i % 4 == 0:
        refused = await _try_grpc(clients, prompt, text)
    else:
        answer = await clients.http.post("/v1/completions", json=complete(prompt))
        refused = answer.status_code == 429
        if refused:
            assert float(answer.headers["retry-after"]) > 0
        else:
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["text"] == text
    if refused:
        outcome.refused += 1
    else:
        outcome.completed += 1


async def _try_grpc(clients: Clients, prompt: str, text: str) -> bool:
    params = generate_pb2.SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True)
    request = generate_pb2.GenerateRequest(text=prompt, sampling_params=params)
    received = ""
    try:
        async for response in clients.stub.Generate(request, timeout=300):
            received += "".join(delta.text for delta in response.deltas)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error
        return True
    assert received == text
    return False


@pytest.fixture(scope="module")
def tenants(tmp_path_factory) -> Iterator[ChaosServer]:
    """Two tenants of equal weight, and few places."""
    path: Path = tmp_path_factory.mktemp("keys") / "keys.yaml"
    entries = [{"tenant": name, "sha256": hashlib.sha256(key.encode()).hexdigest()} for name, key in KEYS.items()]
    path.write_text(json.dumps(entries))  # JSON is YAML
    flags = ["--scheduling-policy", "fair", "--max-num-seqs", "8", "--max-queued-requests", "256"]
    with chaos_server("--api-keys", str(path), *flags) as server:
        yield server


def test_22_tenant_flood(tenants):
    """Case 22: one tenant has 96 requests waiting all the time, another sends one after the other.

    Passes if, between a request of the calm tenant and its first token, at most half of the flood's requests end that
    were there before it (first come, first served would be nearly all). Measured: how the flood moves the time to the
    first token.
    """
    asyncio.run(_flood(tenants))


async def _flood(server: ChaosServer) -> None:
    async with Clients(server, KEYS["flood"]) as flood, Clients(server, KEYS["calm"]) as calm:
        ended = 0

        async def keep_asking(first: int) -> None:
            nonlocal ended
            for i in range(first, 10_000, FLOOD):
                answer = await flood.http.post("/v1/completions", json=complete(f"flood {i}", max_tokens=48))
                assert answer.status_code == 200, answer.text
                ended += 1

        others = [asyncio.create_task(keep_asking(i)) for i in range(FLOOD)]
        try:
            while ended < 16:
                await asyncio.sleep(0.01)
            for i in range(15):
                before = ended
                assert await _first_token(calm, i, lambda: ended) - before <= FLOOD // 2, "the flood went first"
        finally:
            for task in others:
                task.cancel()
            results = await asyncio.gather(*others, return_exceptions=True)
        failures = [result for result in results if not isinstance(result, asyncio.CancelledError)]
        assert not failures, failures[0]


async def _first_token(clients: Clients, i: int, count: Callable[[], int]) -> int:
    """What `count` says at the first token of a short request."""
    first: int | None = None
    async for event in events(clients, "/v1/completions", complete(f"calm {i}", max_tokens=8)):
        if first is None and event["choices"]:
            first = count()
    assert first is not None
    return first


def test_23_prefixes_are_a_tenants_own(tenants):
    """Case 23: a tenant sends the prompt that another has sent.

    Passes if it has 0 cached tokens, also with the other's cache_salt, while the first tenant has them.
    """

    def cached(tenant: str, **body: object) -> int:
        headers = {"Authorization": f"Bearer {KEYS[tenant]}"}
        prompt = complete(list(range(100, 400)), max_tokens=1, **body)
        answer = httpx.post(f"{tenants.url}/v1/completions", json=prompt, headers=headers, timeout=60)
        answer.raise_for_status()
        return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert cached("flood") == 0
    assert cached("flood") == 288
    assert cached("calm") == 0
    assert cached("calm") == 288
    assert cached("flood", cache_salt="a") == 0
    assert cached("calm", cache_salt="a") == 0


# Loaded by every Python that has its folder on PYTHONPATH; only the scheduler has hashes to shorten.
_SHORT_HASHES = """
import sys
if "scheduler" in sys.orig_argv:
    import quire.kv_journal as kv_journal  # before who takes the function from it
    whole = kv_journal.chain_hash
    kv_journal.chain_hash = lambda *content: whole(*content)[:1] + bytes(31)
"""


def test_24_hash_collisions(reference, tmp_path):
    """Case 24: hashes of 8 bits instead of 256, so that most blocks have another's.

    Passes if no prompt gets cached tokens from another that shares none with it, and all answers are the undisturbed
    ones.
    """
    (tmp_path / "sitecustomize.py").write_text(_SHORT_HASHES)
    path = f"{tmp_path}:{Path(__file__).parents[2] / 'src'}"
    with chaos_server(env={"PYTHONPATH": path}) as server:
        prompts = [[40 + (i * 7 + j * (i + 1)) % 1900 for j in range(64)] for i in range(200)]
        assert len({tuple(prompt[:16]) for prompt in prompts}) == 200
        calls = {
            str(i): rest("/v1/completions", prompt=prompt, max_tokens=4, temperature=0, ignore_eos=True)
            for i, prompt in enumerate(prompts)
        }
        first = asyncio.run(answers(server, calls))
        state = server.kv_state()
        assert state.prefix_cache_hits == 0
        assert state.cached_blocks <= 256, "the hashes were not shortened"
        check_equal(asyncio.run(answers(server, calls)), first)
        check_equal(asyncio.run(answers(server, mixed_workload())), reference)
        server.wait_idle()
