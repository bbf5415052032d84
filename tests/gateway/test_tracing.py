"""The gateway's span of a request: whose child it is, and what it says."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from support.certificates import Authority
from support.fake_scheduler import FakeScheduler
from support.gateway_fixtures import MODEL, Gateway, start_gateway
from support.otlp_receiver import OtlpReceiver, ReceivedSpan, otlp_receiver

from quire.config import SchedulerSettings
from quire.errors import ServiceUnavailableError, StartupError
from quire.tracing import open_export
from quire.v1 import generate_pb2, generate_pb2_grpc

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module", autouse=True)
def short_periods() -> Iterator[None]:
    """Spans are sent at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quire.otlp._PERIOD_MS", 50)
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(module_scheduler: FakeScheduler, model_folder: Any, receiver: OtlpReceiver) -> AsyncIterator[Gateway]:
    gateway = await start_gateway(module_scheduler, model_folder, otlp_traces_endpoint=receiver.endpoint)
    yield gateway
    await gateway.close()


def _headers(trace_id: str = TRACE, flags: str = "01", **more: str) -> dict[str, str]:
    return {"traceparent": f"00-{trace_id}-{PARENT}-{flags}", **more}


async def _span(receiver: OtlpReceiver, request_id: str) -> ReceivedSpan:
    def found() -> list[ReceivedSpan]:
        return [span for span in receiver.spans if span.attributes["gen_ai.request.id"] == request_id]

    await asyncio.to_thread(receiver.wait_for, lambda _: bool(found()))
    (span,) = found()
    return span


async def test_a_span_continues_the_callers_trace(http, scheduler, receiver):
    body = {"messages": [{"role": "user", "content": "secret"}], "max_tokens": 3, "temperature": 0.7, "seed": 5, "n": 2}
    answer = await http.post("/v1/chat/completions", json=body, headers=_headers(tracestate="vendor=a"))
    span = await _span(receiver, answer.json()["id"])
    assert (span.trace_id, span.parent_id, span.name) == (TRACE, PARENT, f"chat {MODEL}")
    assert (span.service, span.instance) == ("quire-gateway", "gateway-0")
    assert span.span.kind == span.span.SPAN_KIND_SERVER
    assert span.span.trace_state == "vendor=a"
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "quire",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": MODEL,
        "gen_ai.response.id": answer.json()["id"],
        "gen_ai.request.max_tokens": 3,
        "gen_ai.request.temperature": 0.7,
        "gen_ai.request.seed": 5,
        "gen_ai.request.choice.count": 2,
        "gen_ai.usage.input_tokens": answer.json()["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": 6,
        "gen_ai.response.finish_reasons": ["length", "length"],
        "http.route": "/v1/chat/completions",
    }
    assert span.attributes.items() >= expected.items()
    latencies = {name for name in span.attributes if name.startswith("gen_ai.latency.")}
    names = ("e2e", "time_in_queue", "time_to_first_token")
    phases = ("time_in_model_prefill", "time_in_model_decode", "time_in_model_inference")
    assert latencies == {f"gen_ai.latency.{name}" for name in (*names, *phases)}
    assert "secret" not in str(span.span)
    # The scheduler's spans are its children.
    (submitted,) = scheduler.requests
    assert submitted.message.trace_parent == f"00-{TRACE}-{span.span_id}-01"


async def test_without_a_trace_one_begins_for_all_prompts_of_a_call(http, scheduler, receiver):
    answer = await http.post("/v1/completions", json={"prompt": ["a", "b"], "max_tokens": 2, "stream": False})
    spans = [await _span(receiver, f"{answer.json()['id']}-{index}") for index in range(2)]
    assert {span.parent_id for span in spans} == {""}
    assert len({span.trace_id for span in spans}) == 1
    assert {span.attributes["gen_ai.response.id"] for span in spans} == {answer.json()["id"]}
    assert [span.name for span in spans] == [f"text_completion {MODEL}"] * 2


@pytest.mark.parametrize("headers", [{"traceparent": "00-nonsense"}, {"traceparent": "x" * 5000}, _headers("0" * 32)])
async def test_a_trace_that_cannot_be_is_not_continued(http, scheduler, receiver, headers):
    answer = await http.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}, headers=headers)
    assert (await _span(receiver, answer.json()["id"] + "-0")).parent_id == ""


async def test_a_caller_that_does_not_sample_is_not_traced(http, scheduler, receiver):
    unsampled = "1af7651916cd43dd8448eb211c80319c"
    await http.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}, headers=_headers(unsampled, "00"))
    sampled = await http.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}, headers=_headers())
    await _span(receiver, sampled.json()["id"] + "-0")
    assert not receiver.trace(unsampled)
    assert scheduler.requests[0].message.trace_parent == ""


async def test_a_call_over_grpc(gateway, scheduler, receiver):
    async with grpc.aio.insecure_channel(gateway.grpc_address) as channel:
        stub = generate_pb2_grpc.GenerateServiceStub(channel)
        request = generate_pb2.GenerateRequest(text="a", request_id="over-grpc", sampling_params={"max_tokens": 2})
        async for _ in stub.Generate(request, metadata=tuple(_headers().items()), timeout=30):
            pass
        await stub.Embed(
            generate_pb2.EmbedRequest(inputs=[{"text": "a"}]), metadata=tuple(_headers().items()), timeout=30
        )
    span = await _span(receiver, "over-grpc")
    assert (span.trace_id, span.parent_id) == (TRACE, PARENT)
    assert span.attributes["rpc.method"] == "Generate"
    spans = await asyncio.to_thread(receiver.wait_for_trace, TRACE, f"text_completion {MODEL}", f"embeddings {MODEL}")
    (embedding,) = [span for span in spans if span.name == f"embeddings {MODEL}"]
    assert embedding.attributes["rpc.method"] == "Embed"
    assert "gen_ai.request.max_tokens" not in embedding.attributes


async def test_a_request_that_the_scheduler_refuses_is_an_error(http, scheduler, receiver):
    scheduler.submit_error = ServiceUnavailableError("no room")
    refused = "2af7651916cd43dd8448eb211c80319c"
    await http.post("/v1/completions", json={"prompt": "a"}, headers=_headers(refused))
    (span,) = await asyncio.to_thread(receiver.wait_for_trace, refused, f"text_completion {MODEL}")
    assert span.attributes["error.type"] == "service_unavailable"
    assert span.span.status.code == span.span.status.STATUS_CODE_ERROR


async def test_a_collector_that_is_away_costs_a_line_and_no_request(
    module_scheduler, model_folder, scheduler, caplog, monkeypatch
):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    caplog.set_level(logging.INFO)
    with socket.socket() as reserved:  # bound, and nobody listens
        reserved.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        gateway = await start_gateway(module_scheduler, model_folder, otlp_traces_endpoint=f"http://{address}")
        async with httpx.AsyncClient(base_url=gateway.url, timeout=10) as http:

            async def until_lost(count: int) -> None:
                async with asyncio.timeout(60):
                    while not any("spans are lost" in record.message for record in caplog.records) or count:
                        assert (await http.post("/v1/completions", json={"prompt": "a"})).status_code == 200
                        await asyncio.sleep(0.05)
                        count = max(0, count - 1)

            await until_lost(0)
            await until_lost(30)  # meanwhile more batches are lost
    with otlp_receiver(address) as receiver:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=10) as http:
            async with asyncio.timeout(60):
                while not receiver.spans:
                    await http.post("/v1/completions", json={"prompt": "a"})
                    await asyncio.sleep(0.05)
        await gateway.close()
    said = [record.message for record in caplog.records if "otlp" in record.name or "opentelemetry" in record.name]
    assert len(said) == 2, said
    assert said[0].startswith("spans are lost until http")
    assert "StatusCode.UNAVAILABLE" in said[0]
    assert "takes spans again" in said[1]


async def test_a_collector_that_speaks_tls(tmp_path, monkeypatch):
    authority = Authority(tmp_path)
    pair = authority.issue("collector", "127.0.0.1")
    credentials = grpc.ssl_server_credentials([(pair.key.read_bytes(), pair.certificate.read_bytes())])
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(authority.path))
    with otlp_receiver(credentials=credentials) as receiver:
        export = open_export(receiver.endpoint)
        export.tracer("some", "some-0").start_span("over TLS").end()
        await export.close()
        assert [span.name for span in receiver.spans] == ["over TLS"]


@pytest.mark.parametrize("endpoint", ["localhost:4317", "grpc://localhost:4317", "http://localhost:4317/v1/traces"])
async def test_an_endpoint_that_is_none(endpoint):
    with pytest.raises(StartupError, match=r"--otlp-traces-endpoint: .*such as http://localhost:4317"):
        SchedulerSettings.load({"listen": "unix:/s", "executors": ["unix:/e"], "otlp_traces_endpoint": endpoint})


async def test_without_the_extra_the_flag_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "quire.otlp", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(StartupError, match=r"--otlp-traces-endpoint.*pip install 'quire\[otel\]'") as caught:
        open_export("http://localhost:4317")
    assert caught.value.field == "otlp_traces_endpoint"
