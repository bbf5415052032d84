"""The prefix cache outlives the scheduler, and with --kv-pool the server, whatever ended them."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import grpc
import openai
import pytest
from support.chaos.server import ChaosServer, start_server
from support.servers import Server, running_server, wait_for

# Servers are started one after the other.
pytestmark = pytest.mark.timeout(600)

PROMPT = [(7 * i) % 1900 + 40 for i in range(200)]
# All full blocks of 16 tokens; the last token is always computed.
CACHED_TOKENS = 192


def _complete(server: Server | ChaosServer) -> tuple[str, int]:
    """The text after PROMPT, and how many of its tokens were cached."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        answer = client.completions.create(model="quire-tiny", prompt=PROMPT, max_tokens=24, temperature=0)
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    return answer.choices[0].text, answer.usage.prompt_tokens_details.cached_tokens or 0


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("warm") / "kv"


@pytest.fixture(scope="module")
def cold(pool: Path) -> str:
    """What the first server answers, which then ends in order."""
    with running_server(kv_pool=pool) as server:
        text, cached = _complete(server)
        assert cached == 0
        assert server.kv_state().num_restored_blocks == 0
        assert _complete(server) == (text, CACHED_TOKENS)
    return text


def test_after_sigterm(cold: str, pool: Path):
    with running_server(kv_pool=pool) as server:
        assert server.kv_state().num_restored_blocks >= CACHED_TOKENS // 16
        assert _complete(server) == (cold, CACHED_TOKENS)
    assert pool.stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_after_sigkill_of_all_at_once(cold: str, pool: Path, tmp_path: Path):
    """The machine did not go down, so the journal alone must do; old and new processes do not share the file."""
    with tempfile.TemporaryDirectory(prefix="q-", dir="/tmp") as home:
        served = start_server(Path(home), tmp_path / "log", "--kv-pool", str(pool))
        try:
            assert _complete(served)[0] == cold
        finally:
            served.kill_all()
    with running_server(kv_pool=pool) as server:
        assert _complete(server) == (cold, CACHED_TOKENS)


def test_after_the_scheduler_alone_was_killed(cold: str):
    """The pool is anonymous memory here, of which the supervisor has a descriptor."""
    with running_server() as server:
        assert _complete(server) == (cold, 0)
        scheduler = next(child for child in server.supervisor.children if child.name == "scheduler")
        os.kill(scheduler.process.pid, signal.SIGKILL)
        wait_for(lambda: _num_restored(server) >= CACHED_TOKENS // 16, timeout_s=120)
        assert _complete(server) == (cold, CACHED_TOKENS)


def _num_restored(server: Server) -> int:
    """0 while there is no scheduler."""
    try:
        return server.kv_state().num_restored_blocks
    except grpc.RpcError:
        return 0


@pytest.mark.slow
def test_without_a_prefix_cache_nothing_is_left_to_find(cold: str, pool: Path):
    with running_server(kv_pool=pool, enable_prefix_caching=False) as server:
        assert _complete(server) == (cold, 0)
    with running_server(kv_pool=pool) as server:
        assert server.kv_state().num_restored_blocks == 0
        assert _complete(server) == (cold, 0)
