"""Steps give the same tokens whichever way they travel, and travel the way that was asked for."""

from __future__ import annotations

import pytest
from support.processes import shared_memory
from support.servers import running_server

from quire import SamplingParams
from quire.client import Client

PROMPTS = ["The capital of France is", "Once upon a time", "Count from one to ten:"]


def _tokens(transport: str) -> tuple[list[list[int]], set[str]]:
    """What a server generates, and the names of the shared memory that its executor maps."""
    with running_server(step_transport=transport, dtype="float32") as server, Client(server.grpc_address) as client:
        params = [
            SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, logprobs=3),
            SamplingParams(temperature=1.0, seed=5, max_tokens=40, ignore_eos=True),
        ]
        tokens = [
            [token for delta in client.generate(prompt, param) for token in delta.token_ids]
            for prompt in PROMPTS
            for param in params
        ]
        executor = next(child for child in server.supervisor.children if child.name == "executor 0")
        return tokens, shared_memory(executor.process.pid)


@pytest.fixture(scope="module")
def over_grpc():
    tokens, memory = _tokens("grpc")
    assert memory == {"quire-weights", "quire-kv-pool"}
    return tokens


@pytest.mark.parametrize("transport", ["ring", "auto"])
def test_the_same_tokens(over_grpc, transport):
    tokens, memory = _tokens(transport)
    assert memory == {"quire-weights", "quire-kv-pool", "quire-step-rings"}
    assert tokens == over_grpc
    assert all(len(answer) == 40 for answer in tokens)
