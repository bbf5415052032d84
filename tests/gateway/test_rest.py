"""What every answer of the REST API carries, and who gets one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest
import pytest_asyncio
from support.fake_scheduler import FakeScheduler, Pause
from support.gateway_fixtures import MODEL, Gateway, sse_events, start_gateway

from quire import rpc
from quire.v1 import generate_pb2, generate_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")

COMPLETION = {"prompt": "hello", "max_tokens": 2}


def error_of(answer: httpx.Response) -> Any:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


# ------------------------------------------------------------------ request ids


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/v1/nothing", "/docs"])
async def test_every_answer_has_a_request_id(http: httpx.AsyncClient, path: str) -> None:
    first, second = [(await http.get(path)).headers["x-request-id"] for _ in range(2)]
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert first != second
    assert (await http.get(path, headers={"X-Request-Id": "mine-1"})).headers["x-request-id"] == "mine-1"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_id_of_the_header_names_the_request(
    http: httpx.AsyncClient, scheduler: FakeScheduler, stream: bool
) -> None:
    body = {**COMPLETION, "stream": stream, "request_id": "of-the-body"}
    for headers, expected in (({"x-request-id": "of-the-header"}, "of-the-header"), ({}, "of-the-body")):
        answer = await http.post("/v1/completions", json=body, headers=headers)
        assert answer.headers["x-request-id"] == expected
        assert (sse_events(answer.text)[0] if stream else answer.json())["id"] == f"cmpl-{expected}"
        assert scheduler.requests[-1].message.request_id == f"cmpl-{expected}-0"
    error = await http.post("/v1/completions", json={"prompt": ""}, headers={"x-request-id": "wrong"})
    assert (error.status_code, error.headers["x-request-id"]) == (400, "wrong")


@pytest.mark.parametrize("sent", ["", "x" * 257, "a b", "a\tb", "ä"])
async def test_an_id_that_cannot_be_one_is_replaced(http: httpx.AsyncClient, sent: str) -> None:
    answer = await http.get("/health", headers={"x-request-id": sent.encode("latin-1")})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


async def test_a_defect_is_logged_with_the_id(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("quire.gateway.openai.routes.parse_request", None)
    answer = await http.post("/v1/completions", json=COMPLETION, headers={"x-request-id": "unlucky"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "unlucky")
    assert "request unlucky failed" in caplog.text


# ------------------------------------------------------------------ bodies


async def test_a_body_of_another_type(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    content = b'{"prompt": "hello", "max_tokens": 1}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = await http.post("/v1/completions", content=content, headers={"content-type": kind})
        assert answer.status_code == 415
        assert error_of(answer)["code"] == "unsupported_media_type"
    for kind in ("application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json", None):
        headers = {} if kind is None else {"content-type": kind}
        assert (await http.post("/v1/completions", content=content, headers=headers)).status_code == 200


@pytest.mark.parametrize("says_its_length", [False, True])
async def test_a_body_that_is_too_large(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, says_its_length: bool
) -> None:
    monkeypatch.setattr("quire.gateway.streaming.MAX_MESSAGE_BYTES", 1 << 20)
    content = b'{"prompt": "%b"}' % (b"x" * (1 << 20))

    async def parts() -> AsyncIterator[bytes]:
        yield content

    answer = await http.post("/v1/completions", content=content if says_its_length else parts())
    assert answer.status_code == 413
    assert error_of(answer)["message"] == "the body is larger than 1 MiB"


async def test_what_was_sent_comes_back_in_part_only(http: httpx.AsyncClient) -> None:
    for body in ({**COMPLETION, "x" * 100_000: 1}, {**COMPLETION, "model": "x" * 100_000}):
        answer = await http.post("/v1/completions", json=body)
        assert answer.status_code in (400, 404)
        assert len(answer.content) < 3000
    assert len((await http.get("/v1/" + "x" * 5000)).content) < 3000


# ------------------------------------------------------------------ routes


async def test_head_is_get_without_the_body(http: httpx.AsyncClient) -> None:
    for path in ("/health", "/v1/models", "/docs", "/openapi.json"):
        answer = await http.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
    assert (await http.head("/v1/completions")).status_code == 405


async def test_ping(http: httpx.AsyncClient) -> None:
    assert (await http.get("/ping")).status_code == 200
    assert (await http.post("/ping")).status_code == 200


async def test_docs_need_no_other_server(http: httpx.AsyncClient) -> None:
    page = (await http.get("/docs")).text
    links = re.findall(r"""(?:href|src|url)(?:=|: )["']([^"']+)""", page)
    assert len(links) == 4
    for link in links:
        assert link.startswith("/")
        assert (await http.get(link)).status_code == 200


async def test_models_as_openai_and_vllm_list_them(http: httpx.AsyncClient, model_folder: Path) -> None:
    (model,) = (await http.get("/v1/models")).json()["data"]
    assert (model["root"], model["parent"], model["owned_by"]) == (str(model_folder), None, "quire")
    (permission,) = model["permission"]
    assert (permission["object"], permission["allow_sampling"]) == ("model_permission", True)


async def test_the_description_names_what_there_is(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    references = set(re.findall(r"'\$ref': '#/components/schemas/([^']+)'", str(document)))
    assert {"ErrorBody", "CompletionRequest"} <= references <= document["components"]["schemas"].keys()
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
        operation = document["paths"][path]["post"]
        assert set(operation["responses"]) == {"200", "400", "401", "404", "413", "415", "429", "500", "503"}
    choices = document["components"]["schemas"]["Answer_CompletionChoice_"]["properties"]["choices"]
    assert choices["items"]["$ref"].endswith("/CompletionChoice")
    assert "security" not in document["paths"]["/v1/models"]["get"]


# ------------------------------------------------------------------ how many


async def test_too_many_requests(scheduler: FakeScheduler, model_folder: Path) -> None:
    go_on = asyncio.Event()
    scheduler.script = lambda request, index: [70, Pause(go_on), 71]
    gateway = await start_gateway(scheduler, model_folder, max_concurrent_requests=1)
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        running = asyncio.create_task(http.post("/v1/completions", json=COMPLETION))
        await scheduler.wait_requests()
        refused = await http.post("/v1/completions", json=COMPLETION)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert error_of(refused)["code"] == "rate_limit_exceeded"
        async with grpc.aio.insecure_channel(gateway.grpc_address) as channel:
            stub = generate_pb2_grpc.GenerateServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in stub.Generate(generate_pb2.GenerateRequest(text="x")):
                    pass
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        go_on.set()
        assert (await running).status_code == 200
        assert (await http.post("/v1/completions", json=COMPLETION)).status_code == 200
    await gateway.close()


# ------------------------------------------------------------------ keys, origins, paths


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(module_scheduler: FakeScheduler, model_folder: Path) -> AsyncIterator[Gateway]:
    gateway = await start_gateway(
        module_scheduler,
        model_folder,
        api_key=["first", "second"],
        allowed_origins=["https://here.example"],
        allow_credentials=True,
        root_path="/llm",
        served_model_name=[MODEL, "other"],
    )
    yield gateway
    await gateway.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded_http(guarded: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=guarded.url) as client:
        yield client


@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions", "/tokenize", "/detokenize", "/v1/nothing"])
async def test_without_a_key_nothing_is_told(guarded_http: httpx.AsyncClient, path: str) -> None:
    wrong: list[dict[str, str]] = [{}, {"authorization": "Bearer third"}, {"authorization": "Basic first"}]
    wrong += [{"authorization": "first"}, {"x-api-key": "firs"}]
    for headers in wrong:
        answer = await guarded_http.post(path, json=COMPLETION, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert error_of(answer)["code"] == "invalid_api_key"
        assert "x-request-id" in answer.headers


async def test_any_of_the_keys_opens(guarded_http: httpx.AsyncClient) -> None:
    right = [{"authorization": "Bearer first"}, {"Authorization": "bearer second"}, {"x-api-key": "second"}]
    for headers in right:
        assert (await guarded_http.get("/v1/models", headers=headers)).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/ping", "/version", "/openapi.json", "/docs", "/docs/swagger-ui.css"])
async def test_what_needs_no_key(guarded_http: httpx.AsyncClient, path: str) -> None:
    assert (await guarded_http.get(path)).status_code == 200


async def test_the_official_client_sends_its_key(guarded: Gateway) -> None:
    async with openai.AsyncOpenAI(base_url=f"{guarded.url}/v1", api_key="second") as client:
        assert (await client.completions.create(model=MODEL, prompt="x", max_tokens=1)).choices
    async with openai.AsyncOpenAI(base_url=f"{guarded.url}/v1", api_key="no") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_grpc_needs_the_key_too(guarded: Gateway) -> None:
    async with rpc.open_channel(guarded.grpc_address) as channel:
        stub = generate_pb2_grpc.GenerateServiceStub(channel)
        for metadata in ((), (("authorization", "Bearer no"),)):
            with pytest.raises(grpc.aio.AioRpcError) as unary:
                await stub.ListModels(generate_pb2.ListModelsRequest(), metadata=metadata)
            with pytest.raises(grpc.aio.AioRpcError) as streamed:
                async for _ in stub.Generate(generate_pb2.GenerateRequest(text="x"), metadata=metadata):
                    pass
            assert {unary.value.code(), streamed.value.code()} == {grpc.StatusCode.UNAUTHENTICATED}
        found = await stub.ListModels(generate_pb2.ListModelsRequest(), metadata=(("authorization", "Bearer first"),))
        assert found.models[0].id == MODEL


async def test_pages_of_allowed_origins(guarded_http: httpx.AsyncClient) -> None:
    origin = {"origin": "https://here.example", "authorization": "Bearer first"}
    for answer in (
        await guarded_http.get("/v1/models", headers=origin),
        await guarded_http.post("/v1/completions", json=COMPLETION, headers=origin),
        await guarded_http.post("/v1/completions", json=COMPLETION, headers={"origin": "https://here.example"}),
    ):
        assert answer.headers["access-control-allow-origin"] == "https://here.example"
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
    other = await guarded_http.get("/v1/models", headers={**origin, "origin": "https://there.example"})
    assert "access-control-allow-origin" not in other.headers
    assert other.headers["vary"] == "Origin"


async def test_a_browser_asks_first(guarded_http: httpx.AsyncClient) -> None:
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    allowed = await guarded_http.options("/v1/completions", headers={**asks, "origin": "https://here.example"})
    assert (allowed.status_code, allowed.headers["access-control-allow-headers"]) == (200, "authorization")
    # Once each: browsers refuse a list.
    assert allowed.headers.get_list("access-control-allow-origin") == ["https://here.example"]
    assert len(allowed.headers.get_list("x-request-id")) == 1
    refused = await guarded_http.options("/v1/completions", headers={**asks, "origin": "https://there.example"})
    assert refused.status_code == 400


async def test_all_origins_by_default(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v1/models", headers={"origin": "https://there.example"})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-origin" not in (await http.get("/v1/models")).headers


@pytest.mark.parametrize("prefix", ["", "/llm"])
async def test_a_proxys_path(guarded_http: httpx.AsyncClient, prefix: str) -> None:
    key = {"authorization": "Bearer first"}
    assert (await guarded_http.get(f"{prefix}/v1/models", headers=key)).status_code == 200
    assert (await guarded_http.post(f"{prefix}/v1/completions", json=COMPLETION, headers=key)).status_code == 200
    assert (await guarded_http.post(f"{prefix}/v1/completions", json=COMPLETION)).status_code == 401
    page = (await guarded_http.get(f"{prefix}/docs")).text
    assert '"/llm/docs/swagger-ui.css"' in page
    document = (await guarded_http.get(f"{prefix}/openapi.json")).json()
    assert document["servers"] == [{"url": "/llm"}]
    assert document["paths"]["/v1/models"]["get"]["security"]


async def test_several_names_of_one_model(guarded_http: httpx.AsyncClient) -> None:
    guarded_http.headers["authorization"] = "Bearer first"
    listed = (await guarded_http.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == [MODEL, "other"]
    assert (await guarded_http.get("/v1/models/other")).json()["id"] == "other"
    answer = await guarded_http.post("/v1/completions", json={**COMPLETION, "model": "other"})
    assert answer.json()["model"] == MODEL
    del guarded_http.headers["authorization"]
