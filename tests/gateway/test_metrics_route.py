"""GET /metrics of a gateway in front of a fake scheduler: its formats, who sees tenants, a scheduler that is away."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import httpx
import pytest
import pytest_asyncio
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text
from support.fake_scheduler import FakeScheduler
from support.gateway_fixtures import MODEL, Gateway, start_gateway
from support.scrapes import COMMON_LABELS, Samples, samples

from quire.gateway.metrics_text import TextFormat
from quire.metrics import METRICS, TENANT_METRICS
from quire.v1 import generate_pb2, generate_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEYS = {name: {"authorization": f"Bearer key of {name}"} for name in ("operator", "user", "nobody")}
BODY = {"model": MODEL, "prompt": "ab", "max_tokens": 4}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keyed(
    module_scheduler: FakeScheduler, model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Gateway]:
    """A gateway with keys of an operator and of a user, and with vLLM's names."""
    digests = {name: hashlib.sha256(f"key of {name}".encode()).hexdigest() for name in ("operator", "user")}
    entries = [{"tenant": name, "sha256": key, "operator": name == "operator"} for name, key in digests.items()]
    path = tmp_path_factory.mktemp("keys") / "keys.yaml"
    path.write_text(yaml.safe_dump(entries))
    gateway = await start_gateway(module_scheduler, model_folder, api_keys=path, metrics_alias="vllm")
    yield gateway
    await gateway.close()


@pytest_asyncio.fixture(loop_scope="module")
async def http(keyed: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=keyed.url, timeout=20) as client:
        yield client


async def until(
    http: httpx.AsyncClient, condition: Callable[[httpx.Response], bool], headers: dict[str, str] | None = None
) -> httpx.Response:
    """An answer that a condition holds for: each is held for 0.1 s."""
    async with asyncio.timeout(20):
        while not condition(response := await http.get("/metrics", headers=headers)):
            await asyncio.sleep(0.02)
    return response


async def counted(http: httpx.AsyncClient, headers: dict[str, str], name: str, *labels: str, value: float) -> Samples:
    """The figures once a series has reached a value."""
    response = await until(http, lambda response: samples(response.text).get((name, *labels)) == value, headers)
    return samples(response.text)


async def test_only_operators_see_tenants(scheduler, http):
    for name, times in (("user", 2), ("operator", 1)):
        for _ in range(times):
            assert (await http.post("/v1/completions", json=BODY, headers=KEYS[name])).status_code == 200
    found = await counted(http, KEYS["operator"], "quire:tenant_generation_tokens_total", "user", value=8)
    assert found["quire:tenant_generation_tokens_total", "operator"] == 4
    assert found["quire:tenant_request_success_total", "length", "user"] == 2
    assert found["quire:generation_tokens_total",] == 12
    for headers in ({}, KEYS["user"]):
        found = await counted(http, headers, "quire:generation_tokens_total", value=12)
        assert not any("tenant" in name for name, *_ in found)
    refused = await http.get("/metrics", headers=KEYS["nobody"])
    assert refused.status_code == 401, "a wrong key is told so"


async def test_names_are_those_of_the_table_and_of_vllm(http):
    families = {family.name: family for family in read_text((await http.get("/metrics")).text)}
    own = {name.removeprefix("quire:") for name in families if name.startswith("quire:")}
    assert own <= METRICS.keys()
    vllms = {name.removeprefix("vllm:") for name in families if name.startswith("vllm:")}
    expected = {alias for name in own if METRICS[name].is_vllms for alias in (name, *METRICS[name].former_names)}
    assert vllms == expected
    assert {"request_success", "time_per_output_token_seconds"} <= vllms
    assert not own & TENANT_METRICS
    for name in own:
        family = families[f"quire:{name}"]
        assert family.type == METRICS[name].kind
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels == COMMON_LABELS | set(METRICS[name].labels), name


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("application/openmetrics-text", TextFormat.OPENMETRICS),
        # Prometheus 2 and 3.
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            TextFormat.OPENMETRICS,
        ),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=1.0.0;q=0.3",
            TextFormat.OPENMETRICS,
        ),
        ("application/openmetrics-text;version=2.0.0", TextFormat.PROMETHEUS),
        ("text/plain;version=1.0.0;escaping=underscores", TextFormat.PROMETHEUS),
        ("", TextFormat.PROMETHEUS),
    ],
)
async def test_the_same_series_in_the_format_that_is_asked_for(http, accept, expected):
    plain = await http.get("/metrics", headers={"accept": "text/plain"})
    response = await http.get("/metrics", headers={"accept": accept})
    assert response.headers["content-type"] == expected.value
    is_open = expected is TextFormat.OPENMETRICS
    assert response.text.endswith("# EOF\n") == is_open
    families = list((read_openmetrics if is_open else read_text)(response.text))
    assert {family.name for family in families} == {family.name for family in read_text(plain.text)}
    series = {(sample.name, *sample.labels.items()) for family in families for sample in family.samples}
    # The plain text has the answers to these very requests too.
    known = {(sample.name, *sample.labels.items()) for family in read_text(plain.text) for sample in family.samples}
    assert known <= series
    assert all(name.startswith(("quire:", "vllm:")) for name, *_ in series)


async def test_answers_are_counted_by_status(scheduler, keyed, http):
    assert (await http.post("/v1/completions", json=BODY)).status_code == 401
    assert (await http.get("/nowhere", headers=KEYS["user"])).status_code == 404
    found = await counted(http, {}, "quire:http_responses_total", "404", value=1)
    assert found["quire:http_responses_total", "401"] >= 1
    async with grpc.aio.insecure_channel(keyed.grpc_address) as channel:
        stub = generate_pb2_grpc.GenerateServiceStub(channel)
        metadata = [("authorization", "Bearer key of user")]
        await stub.ListModels(generate_pb2.ListModelsRequest(), metadata=metadata)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Tokenize(generate_pb2.TokenizeRequest(), metadata=metadata)
    await counted(http, {}, "quire:grpc_responses_total", "OK", value=1)
    await counted(http, {}, "quire:grpc_responses_total", "INVALID_ARGUMENT", value=1)


async def test_a_scheduler_that_is_away_is_said_so(scheduler, http):
    await scheduler.crash()
    response = await until(http, lambda response: response.status_code != 200)
    assert response.status_code == 503
    assert "scheduler" in response.json()["error"]["message"]
    await scheduler.start()
    # The new one begins at zero, and takes what comes.
    await until(http, lambda response: response.status_code == 200)
    assert (await http.post("/v1/completions", json=BODY, headers=KEYS["user"])).status_code == 200
    await counted(http, {}, "quire:generation_tokens_total", value=4)
