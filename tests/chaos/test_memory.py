"""The pool is too small for what runs, and requests as long as there may be (cases 19 and 20)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from support.chaos.baseline import Baseline
from support.chaos.server import ChaosServer, chaos_server
from support.chaos.streams import answers, check_equal, rest
from support.chaos.workload import STORY, mixed_workload

CONTEXT = 2048


@pytest.fixture(scope="module")
def server() -> Iterator[ChaosServer]:
    """With blocks for one request of full length and a half, 12,000 tokens less than the workload has at its end."""
    with chaos_server(kv_cache_memory="5MiB") as started:
        asyncio.run(answers(started, mixed_workload(40)))
        yield started


@pytest.fixture
def baseline(server: ChaosServer) -> Iterator[Baseline]:
    taken = Baseline.take(server)
    yield taken
    taken.check(server)


def test_19_pool_exhausted(server, baseline, reference):
    """Case 19: the mixed workload in a pool that holds a fraction of it.

    Passes if sequences were preempted, all requests end, and every answer is that of a large pool.
    """
    before = server.kv_state().num_preemptions
    check_equal(asyncio.run(answers(server, mixed_workload())), reference)
    assert server.kv_state().num_preemptions > before


def test_20_maximum_context(server, baseline):
    """Case 20: requests that fill the context to its last token, four at once, beside a small one.

    Passes if each has exactly the tokens that there is room for, those with equal prompts are equal, and a prompt that
    is one token too long, or leaves no room for a token, is refused with 400.
    """

    def complete(length: int, **body: object) -> object:
        return rest("/v1/completions", prompt=[7] * length, seed=20, ignore_eos=True, stream=True, **body)

    calls = {
        "one token left": complete(CONTEXT - 1),
        "all of it output": complete(1, max_tokens=CONTEXT - 1, return_token_ids=True),
        "the same": complete(1, max_tokens=CONTEXT - 1, return_token_ids=True),
        "half": complete(CONTEXT // 2, max_tokens=CONTEXT // 2),
        "small": rest("/v1/completions", prompt=STORY, max_tokens=4),
    }
    found = asyncio.run(answers(server, calls))
    assert found["all of it output"] == found["the same"]
    for name, num_tokens in {"one token left": 1, "all of it output": CONTEXT - 1, "half": CONTEXT // 2}.items():
        assert found[name]["usage"]["completion_tokens"] == num_tokens
        assert found[name]["choices"][0]["finish_reason"] == "length"
    for length, max_tokens in [(CONTEXT, 1), (CONTEXT + 1, 1), (CONTEXT - 1, 2)]:
        body = {"model": "quire-tiny", "prompt": [7] * length, "max_tokens": max_tokens}
        assert httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).status_code == 400
