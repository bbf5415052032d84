"""The swap tier, seen by a client: prompts are not computed again, and answers are those of a large pool."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest
from support.scrapes import scrape
from support.servers import Server, running_server

BLOCK = 16
# All of the 6 do not fit the small pool.
PROMPTS = [random.Random(topic).choices(range(40, 1900), k=24 * BLOCK + 5) for topic in range(6)]


def _ask(server: Server, prompts: list[list[int]]) -> list[str]:
    """One prompt after the other."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        return [
            client.completions.create(model="quire-tiny", prompt=prompt, max_tokens=8, temperature=0).choices[0].text
            for prompt in prompts
        ]


def _mapped_pools(pid: int) -> set[str]:
    """The inodes of the pools, and of the tiers, that a process maps; none of one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except (OSError, ProcessLookupError):
        return set()
    return {line.split()[4] for line in lines if "memfd:quire-kv-pool" in line}


@pytest.fixture(scope="module")
def answers(shared_server: Server) -> list[str]:
    """Of a server whose pool holds everything."""
    return _ask(shared_server, PROMPTS)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Two executors share a pool of three prompts, and the tier."""
    with running_server(kv_cache_memory="2MiB", swap_space=1 / 16, max_model_len=512, num_executors=2) as server:
        yield server
        pools = set[str]().union(*(_mapped_pools(child.process.pid) for child in server.supervisor.children))
        assert len(pools) == 2, "the pool and the tier"
    assert not any(pools & _mapped_pools(pid) for pid in psutil.pids()), "shared memory is left"


def test_answers_are_those_of_a_large_pool(server: Server, answers: list[str]) -> None:
    for _ in range(2):
        assert _ask(server, PROMPTS) == answers
    figures = scrape(server.url)
    assert figures["quire:external_prefix_cache_hits_total",] >= 3 * 24 * BLOCK
    assert figures["quire:swapped_in_blocks_total",] >= 3 * 24
    assert 0 < figures["quire:cpu_cache_usage_perc",] <= 1


@pytest.mark.slow
def test_an_executor_that_dies_costs_no_answer(server: Server, answers: list[str]) -> None:
    lost = server.kv_state().num_lost_executors
    executors = [child.process for child in server.supervisor.children if child.name.startswith("executor")]
    assert _ask(server, PROMPTS[:3]) == answers[:3]
    executors[0].kill()
    assert _ask(server, PROMPTS[3:]) == answers[3:]
    executors[1].kill()
    assert _ask(server, PROMPTS) == answers
    assert server.kv_state().num_lost_executors == lost + 2
    server.wait_idle()
