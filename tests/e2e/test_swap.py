"""The swap tier, seen by a client: answers are those of a large pool, whoever dies, and prompts are not computed again."""

from __future__ import annotations

import random
from collections.abc import Iterator

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


def _shared_memory() -> dict[int, set[str]]:
    """The inodes of the pools that are mapped, by process."""
    found: dict[int, set[str]] = {}
    for process in psutil.process_iter():
        try:
            maps = process.memory_maps(grouped=False)
        except psutil.Error:  # it has ended, or is another user's
            continue
        found[process.pid] = {mapped.inode for mapped in maps if "memfd:quire-kv-pool" in mapped.path}
    return found


@pytest.fixture(scope="module")
def answers() -> list[str]:
    """Of a server whose pool holds everything."""
    with running_server(max_model_len=512) as server:
        return _ask(server, PROMPTS)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Two executors share a pool of three prompts, and the tier."""
    with running_server(kv_cache_memory="2MiB", swap_space=1 / 16, max_model_len=512, num_executors=2) as server:
        yield server


def test_answers_are_those_of_a_large_pool(server: Server, answers: list[str]) -> None:
    for _ in range(2):
        assert _ask(server, PROMPTS) == answers
    figures = scrape(server.url)
    assert figures["quire:external_prefix_cache_hits_total",] >= 3 * 24 * BLOCK
    assert figures["quire:swapped_in_blocks_total",] >= 3 * 24
    assert 0 < figures["quire:cpu_cache_usage_perc",] <= 1


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
