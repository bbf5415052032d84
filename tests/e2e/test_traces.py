"""One trace per request, across gateway, scheduler and executor."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import psutil
import pytest
from support.otlp_receiver import OtlpReceiver, ReceivedSpan, otlp_receiver
from support.servers import Server, running_server

from quire.internal.v1 import scheduler_pb2
from quire.v1 import generate_pb2, generate_pb2_grpc

pytestmark = pytest.mark.slow

PHASES = ("queue", "prefill", "compute prefill", "decode", "compute decode")
PARENT = "b7ad6b7169203331"
# Between clocks that are read one after the other, on a machine that is busy.
TOLERANCE_NS = 50_000_000


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def server(receiver: OtlpReceiver) -> Iterator[Server]:
    with running_server(otlp_traces_endpoint=receiver.endpoint) as server:
        yield server


class Caller:
    """A client with a trace of its own."""

    def __init__(self, flags: str = "01") -> None:
        self.trace_id = secrets.token_hex(16)
        self.headers = {"traceparent": f"00-{self.trace_id}-{PARENT}-{flags}"}

    def post(self, server: Server, path: str, **body: Any) -> httpx.Response:
        answer = httpx.post(server.url + path, json=body, headers=self.headers, timeout=60)
        answer.raise_for_status()
        return answer


def _check_family(spans: list[ReceivedSpan]) -> ReceivedSpan:
    """All descend from the gateway's span, which is a child of the caller's, and lie in their parents; returns it."""
    (root,) = [span for span in spans if span.parent_id == PARENT]
    by_id = {span.span_id: span for span in spans}
    services = {"queue": "quire-scheduler", "prefill": "quire-scheduler", "decode": "quire-scheduler"}
    for span in spans:
        if span is root:
            continue
        expected = root if span.name in services else None
        parent = by_id[span.parent_id]
        assert parent is expected or (span.name, parent.name) in {
            ("compute prefill", "prefill"),
            ("compute decode", "decode"),
        }
        assert span.service == services.get(span.name, "quire-executor")
        assert span.lies_in(parent, TOLERANCE_NS), f"{span} in {parent}"
    assert root.service == "quire-gateway"
    return root


def test_a_whole_answer(server, receiver):
    caller = Caller()
    caller.post(server, "/v1/completions", prompt="The capital of France is", max_tokens=8, ignore_eos=True)
    spans = receiver.wait_for_trace(caller.trace_id, "text_completion quire-tiny", *PHASES)
    root = _check_family(spans)
    assert len(spans) == 6
    assert root.attributes["gen_ai.usage.output_tokens"] == 8
    (decode,) = [span for span in spans if span.name == "compute decode"]
    assert decode.attributes["quire.num_tokens"] == 7
    assert decode.instance == "executor-0"


def test_a_stream(server, receiver):
    caller = Caller()
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "stream": True}
    caller.post(server, "/v1/chat/completions", **body)
    root = _check_family(receiver.wait_for_trace(caller.trace_id, "chat quire-tiny", *PHASES))
    assert root.events == ["first token"]


def test_a_call_over_grpc(server, receiver):
    caller = Caller()
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = generate_pb2_grpc.GenerateServiceStub(channel)
        request = generate_pb2.GenerateRequest(text="Once", sampling_params={"max_tokens": 4, "ignore_eos": True})
        list(stub.Generate(request, metadata=tuple(caller.headers.items()), timeout=60))
    _check_family(receiver.wait_for_trace(caller.trace_id, "text_completion quire-tiny", *PHASES))


def test_an_embedding(server, receiver):
    caller = Caller()
    caller.post(server, "/v1/embeddings", input="Once upon a time")
    spans = receiver.wait_for_trace(caller.trace_id, "embeddings quire-tiny", "queue", "prefill", "compute prefill")
    _check_family(spans)
    assert len(spans) == 4


def test_a_caller_that_does_not_sample(server, receiver):
    unsampled, sampled = Caller("00"), Caller()
    for caller in (unsampled, sampled):
        caller.post(server, "/v1/completions", prompt="Once", max_tokens=4, ignore_eos=True)
    receiver.wait_for_trace(sampled.trace_id, "text_completion quire-tiny", *PHASES)
    assert not receiver.trace(unsampled.trace_id)


def test_a_client_that_leaves(server, receiver):
    caller = Caller()
    body = {"prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", server.url + "/v1/completions", json=body, headers=caller.headers, timeout=60) as answer:
        next(answer.iter_lines())
    spans = receiver.wait_for_trace(caller.trace_id, "text_completion quire-tiny", *PHASES)
    by_name = {span.name: span for span in spans}
    assert by_name["text_completion quire-tiny"].attributes["gen_ai.response.finish_reasons"] == ["abort"]
    assert by_name["decode"].events == ["aborted"]


def test_an_executor_that_dies(server, receiver):
    caller = Caller()
    executor = server.scheduler.Describe(scheduler_pb2.DescribeRequest(), timeout=10).executors[0]
    body = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", server.url + "/v1/completions", json=body, headers=caller.headers, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        psutil.Process(executor.pid).kill()
        list(lines)
    spans = receiver.wait_for_trace(
        caller.trace_id, "text_completion quire-tiny", *PHASES, "queue", "prefill", "decode"
    )
    _check_family(spans)
    first, second = sorted(
        (span for span in spans if span.name == "decode"), key=lambda span: span.span.start_time_unix_nano
    )
    assert [event.partition(":")[0] for event in first.events] == ["executor lost"]
    assert not second.events
    # Each of the two prefills samples one.
    assert first.attributes["quire.num_tokens"] + second.attributes["quire.num_tokens"] == 398


def test_a_scheduler_that_dies(server, receiver):
    caller = Caller()
    scheduler = next(child for child in server.supervisor.children if child.name == "scheduler")
    body = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", server.url + "/v1/completions", json=body, headers=caller.headers, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        psutil.Process(scheduler.process.pid).kill()
        list(lines)
    spans = receiver.wait_for_trace(caller.trace_id, "text_completion quire-tiny", *PHASES)
    (root,) = [span for span in spans if span.parent_id == PARENT]
    assert root.attributes["quire.attempts"] == 2
    assert {span.attributes["quire.attempt"] for span in spans if span.name == "decode"} == {1}
