"""Steps give the same tokens whichever way they travel, and travel the way that was asked for."""

from __future__ import annotations

import pytest
from support.processes import shared_memory
from support.servers import Server, running_server

from quire import SamplingParams
from quire.client import Client

PROMPTS = ["The capital of France is", "Once upon a time", "Count from one to ten:"]


# What an executor shares with others however steps travel.
OVER_GRPC = {"quire-weights", "quire-kv-pool", "quire-progress"}


def _tokens(server: Server) -> list[list[int]]:
    params = [
        SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, logprobs=3),
        SamplingParams(temperature=1.0, seed=5, max_tokens=40, ignore_eos=True),
    ]
    with Client(server.grpc_address) as client:
        return [
            [token for delta in client.generate(prompt, param) for token in delta.token_ids]
            for prompt in PROMPTS
            for param in params
        ]


def _memory(server: Server) -> set[str]:
    """Names of the shared memory that the executor maps."""
    executor = next(child for child in server.supervisor.children if child.name == "executor 0")
    return shared_memory(executor.process.pid)


def test_the_same_tokens(server):
    """By default steps go through rings."""
    tokens = _tokens(server)
    assert all(len(answer) == 40 for answer in tokens)
    assert _memory(server) == {*OVER_GRPC, "quire-step-rings"}
    with running_server(step_transport="grpc") as other:
        assert _tokens(other) == tokens
        assert _memory(other) == OVER_GRPC


@pytest.mark.slow
def test_rings_can_be_asked_for():
    with running_server(step_transport="ring") as server:
        assert "quire-step-rings" in _memory(server)
