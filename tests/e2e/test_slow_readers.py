"""Readers that stop: others go on, memory stays bounded, and whoever reads again gets every token in order."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator

import grpc
import psutil
import pytest
from support.servers import Server, running_server, wait_for

from quire import CompletionOutput, SamplingParams
from quire.client import Client
from quire.v1 import generate_pb2, generate_pb2_grpc

pytestmark = pytest.mark.slow

MIB = 1 << 20
# Much more than sockets hold: 12,000 tokens of 20 logprobs are some 20 MB as JSON.
PARAMS = {"n": 8, "max_tokens": 1500, "seed": 5, "ignore_eos": True}
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def server():
    with running_server(kv_cache_memory="128MiB") as running:
        yield running
        running.wait_idle()


@pytest.fixture(scope="module")
def expected(server) -> list[CompletionOutput]:
    """What a fast reader gets."""
    with Client(server.grpc_address) as client:
        return client.complete(PROMPT, SamplingParams(**PARAMS)).outputs


@contextlib.contextmanager
def stopped_rest_reader(server: Server) -> Iterator[socket.socket]:
    """Has asked for a stream, and reads nothing."""
    body = {"model": "quire-tiny", "prompt": PROMPT, "stream": True, "logprobs": 20, **PARAMS}
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.socket() as connection:
        connection.settimeout(60)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(head.encode() + content)
        yield connection


def wait_paused(server: Server, num_requests: int = 1) -> None:
    """Waits until so many requests live, and none of them holds a block."""

    def is_paused() -> bool:
        state = server.kv_state()
        live = {sequence.request_id for sequence in state.sequences}
        return len(live) == num_requests and state.held_blocks == 0

    wait_for(is_paused, 60)


def gateway_rss(server: Server) -> int:
    return psutil.Process(server.supervisor.children[-1].process.pid).memory_info().rss


def read_rest(connection: socket.socket) -> list[tuple[str, int]]:
    """Text and number of tokens of each choice."""
    data = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    texts, num_tokens = [""] * PARAMS["n"], [0] * PARAMS["n"]
    events = [line.removeprefix(b"data: ") for line in data.splitlines() if line.startswith(b"data: ")]
    assert events.pop() == b"[DONE]"
    for event in events:
        for choice in json.loads(event)["choices"]:
            texts[choice["index"]] += choice["text"]
            num_tokens[choice["index"]] += len(choice["logprobs"]["tokens"])
    return list(zip(texts, num_tokens, strict=True))


def check_others(server: Server) -> None:
    with Client(server.grpc_address) as client:
        output = client.complete("The capital of France is", SamplingParams(temperature=0, max_tokens=4))
    assert output.outputs[0].text.startswith(" Paris")


def test_a_rest_reader_that_stops_and_goes_on(server, expected):
    with stopped_rest_reader(server) as connection:
        wait_paused(server)
        check_others(server)
        choices = read_rest(connection)
    assert choices == [(output.text, len(output.token_ids)) for output in expected]


@pytest.mark.parametrize("request_id", ["", "a-slow-one"])
def test_a_grpc_reader_that_stops_and_goes_on(server, expected, request_id):
    params = generate_pb2.SamplingParams(logprobs=20, **PARAMS)
    request = generate_pb2.GenerateRequest(text=PROMPT, request_id=request_id, sampling_params=params)
    # Windows that do not grow, as those of a small client.
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536)]
    with grpc.insecure_channel(server.grpc_address, options=options) as channel:
        call = generate_pb2_grpc.GenerateServiceStub(channel).Generate(request, timeout=120)
        wait_paused(server)
        check_others(server)
        received: list[list[int]] = [[] for _ in range(PARAMS["n"])]
        for response in call:
            for delta in response.deltas:
                received[delta.index] += delta.token_ids
                assert len(delta.logprobs) == len(delta.token_ids)
    assert received == [output.token_ids for output in expected]


def test_many_readers_that_stop_do_not_fill_the_memory(server):
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(stopped_rest_reader(server))
        wait_paused(server, 4)
        few = gateway_rss(server)
        for _ in range(8):
            stack.enter_context(stopped_rest_reader(server))
        wait_paused(server, 12)
        # Paused, each takes less than 1 MiB; without pauses the gateway would hold some 20 MiB for each.
        assert gateway_rss(server) - few < 40 * MIB
        check_others(server)
    server.wait_idle()


def test_cancelled_streams_leave_no_memory_behind(server):
    """grpc.aio has leaked with every cancelled stream (grpc/grpc#43360)."""
    params = generate_pb2.SamplingParams(max_tokens=1500, ignore_eos=True)
    request = generate_pb2.GenerateRequest(text=PROMPT, sampling_params=params)

    def cancel_streams(count: int) -> None:
        for _ in range(count):
            call = stub.Generate(request, timeout=60)
            next(iter(call))
            call.cancel()
        server.wait_idle()

    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = generate_pb2_grpc.GenerateServiceStub(channel)
        cancel_streams(100)
        before = gateway_rss(server)
        cancel_streams(400)
    # A leaked stream would be 20 KiB or more: its call, its task and its detokenizer.
    assert gateway_rss(server) - before < 6 * MIB
