"""Deadlines that pass and clients that leave: in the queue, in prefill and in decode.

The executor is stopped (SIGSTOP) where a request must stay in its state, so no test depends on how fast it is.
"""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator

import grpc
import pytest
from support.servers import Server, running_server, stopped_executor, wait_for

from quire.v1 import generate_pb2, generate_pb2_grpc

# In seconds: long enough for a first token on a slow machine.
DEADLINE_S = 4.0
# More than two steps of 256 tokens take in.
LONG_PROMPT = [7] * 1800


@pytest.fixture(scope="module")
def server():
    """A server on which one sequence runs at a time."""
    with running_server(max_num_seqs=1, max_num_batched_tokens=256, enable_prefix_caching=False) as running:
        yield running
        running.wait_idle()


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.grpc_address) as channel:
        yield generate_pb2_grpc.GenerateServiceStub(channel)


def message(token_ids: list[int], request_id: str = "", max_tokens: int = 200) -> generate_pb2.GenerateRequest:
    params = generate_pb2.SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    ids = generate_pb2.TokenIds(ids=token_ids)
    return generate_pb2.GenerateRequest(token_ids=ids, request_id=request_id, sampling_params=params)


def live(server: Server) -> list:
    return list(server.kv_state().sequences)


def wait_state(server: Server, status: str, *, prefill: bool) -> None:
    """Waits until the only request is in this state, with its prompt computed or not."""

    def is_there() -> bool:
        (sequence,) = live(server) or [None]
        if sequence is None or sequence.status != status:
            return False
        return (sequence.num_computed_tokens < len(LONG_PROMPT)) is prefill

    wait_for(is_there)


def check_gone(server: Server, others: int = 0) -> None:
    """The scheduler has ended it, though no step has ended since."""
    wait_for(lambda: len(live(server)) == others)


def check_deadline(call: grpc.Call) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        for _ in call:
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("request_id", ["", pytest.param("named", marks=pytest.mark.slow)])
def test_a_deadline_in_prefill(server, stub, request_id):
    with stopped_executor(server):
        call = stub.Generate(message(LONG_PROMPT, request_id), timeout=DEADLINE_S)
        wait_state(server, "running", prefill=True)
        check_deadline(call)
        check_gone(server)
    server.wait_idle()


def test_a_deadline_in_the_queue(server, stub):
    with stopped_executor(server):
        first = stub.Generate(message(LONG_PROMPT), timeout=60)
        wait_state(server, "running", prefill=True)
        queued = stub.Generate(message([5, 6, 7]), timeout=DEADLINE_S)
        wait_for(lambda: sorted(sequence.status for sequence in live(server)) == ["running", "waiting"])
        check_deadline(queued)
        check_gone(server, others=1)
    assert sum(len(delta.token_ids) for response in first for delta in response.deltas) == 200
    server.wait_idle()


def test_a_deadline_in_decode(server, stub):
    call = stub.Generate(message([5, 6, 7], max_tokens=1900), timeout=DEADLINE_S)
    next(iter(call))
    with stopped_executor(server):
        assert live(server)[0].num_computed_tokens >= 3
        check_deadline(call)
        check_gone(server)
    server.wait_idle()


@pytest.mark.parametrize("timeout", [0.0, 1e-6])
def test_a_deadline_that_has_passed(server, stub, timeout):
    check_deadline(stub.Generate(message([5, 6, 7]), timeout=timeout))
    server.wait_idle()


def test_a_deadline_in_thirty_years(server, stub):
    responses = list(stub.Generate(message([5, 6, 7]), timeout=1e9))
    assert responses[-1].usage.completion_tokens == 200


@contextlib.contextmanager
def rest_client(
    server: Server, token_ids: list[int], *, stream: bool, max_tokens: int = 200
) -> Iterator[http.client.HTTPConnection]:
    """Has sent a request; leaves at the end of the block."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = {"model": "quire-tiny", "prompt": token_ids, "max_tokens": max_tokens, "ignore_eos": True}
    connection.request("POST", "/v1/completions", json.dumps({**body, "stream": stream}))
    try:
        yield connection
    finally:
        connection.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_rest_client_that_leaves_in_prefill(server, stream):
    with stopped_executor(server):
        with rest_client(server, LONG_PROMPT, stream=stream):
            wait_state(server, "running", prefill=True)
        check_gone(server)
    server.wait_idle()


@pytest.mark.parametrize("stream", [False, True])
def test_a_rest_client_that_leaves_the_queue(server, stream):
    with stopped_executor(server), rest_client(server, LONG_PROMPT, stream=True):
        wait_state(server, "running", prefill=True)
        with rest_client(server, [5, 6, 7], stream=stream):
            wait_for(lambda: len(live(server)) == 2)
        check_gone(server, others=1)
    server.wait_idle()


def test_a_rest_client_that_leaves_in_decode(server):
    with rest_client(server, [5, 6, 7], stream=True, max_tokens=1900) as connection:
        response = connection.getresponse()
        assert response.readline().startswith(b"data: {")
        with stopped_executor(server):
            assert live(server)[0].num_computed_tokens >= 3
            response.close()
            connection.close()
            check_gone(server)
    server.wait_idle()
