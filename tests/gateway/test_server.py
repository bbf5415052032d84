from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterable
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.fake_scheduler import FakeScheduler, Pause
from support.gateway_fixtures import MODEL, Gateway, settings, sse_events, start_gateway

from quire import __version__
from quire.errors import StartupError
from quire.gateway.server import run
from quire.process import StatusReporter, StopSignal
from quire.v1 import generate_pb2, generate_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_health_version_and_docs(http: httpx.AsyncClient) -> None:
    assert (await http.get("/health")).json() == {"status": "ok"}
    assert (await http.get("/version")).json() == {"version": __version__}
    assert "swagger" in (await http.get("/docs")).text
    schema = (await http.get("/openapi.json")).json()
    body = schema["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
    kind = body["schema"]["$ref"].rpartition("/")[2]
    assert "messages" in schema["components"]["schemas"][kind]["properties"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_defect_is_an_error_without_details(
    http: httpx.AsyncClient, scheduler: FakeScheduler, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quire.gateway.openai.routes.parse_request", None)
    answer = await http.post(path, json={})
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "internal error"


async def test_generation_is_posted(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v1/completions")
    assert answer.status_code == 405
    assert answer.json()["error"]["code"] == "method_not_allowed"


async def test_models(http: httpx.AsyncClient) -> None:
    (model,) = (await http.get("/v1/models")).json()["data"]
    assert model["id"] == MODEL
    assert model["object"] == "model"
    assert (await http.get(f"/v1/models/{MODEL}")).json() == model


async def test_signals_are_left_to_the_process(gateway: Gateway) -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("flag", ["port", "grpc_port"])
async def test_a_taken_port_is_named(scheduler: FakeScheduler, model_folder: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=f"--{flag.replace('_', '-')}.*{port}") as caught:
            await start_gateway(scheduler, model_folder, **{flag: port})
        assert caught.value.field == flag


async def test_a_host_that_does_not_exist_is_named(scheduler: FakeScheduler, model_folder: Path) -> None:
    with pytest.raises(StartupError, match="--host"):
        await start_gateway(scheduler, model_folder, host="256.256.256.256")


async def test_ipv6(scheduler: FakeScheduler, model_folder: Path) -> None:
    gateway = await start_gateway(scheduler, model_folder, host="::1")
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"http://[::1]:{gateway.port}/health")).status_code == 200
    await gateway.close()


async def test_a_stop_during_the_start_ends_it(model_folder: Path, tmp_path: Path) -> None:
    nobody = FakeScheduler(tmp_path / "nobody.sock")
    stop = StopSignal()
    starting = asyncio.create_task(run(settings(nobody, model_folder), StatusReporter(None), stop))
    await asyncio.sleep(0.2)
    stop.set()
    async with asyncio.timeout(5):
        await starting


async def test_before_it_is_ready_grpc_is_unavailable(model_folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    nobody = FakeScheduler(tmp_path / "nobody.sock")
    stop = StopSignal()
    started = run(settings(nobody, model_folder, grpc_port=port), StatusReporter(None), stop)
    starting = asyncio.create_task(started)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = generate_pb2_grpc.GenerateServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListModels(generate_pb2.ListModelsRequest(), wait_for_ready=True)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "starting" in (caught.value.details() or "")
    stop.set()
    await starting


async def test_a_stop_lets_running_requests_end(scheduler: FakeScheduler, model_folder: Path) -> None:
    go_on = asyncio.Event()
    scheduler.script = lambda request, index: [70, Pause(go_on), 71, 72]
    gateway = await start_gateway(scheduler, model_folder)
    body = {"model": MODEL, "prompt": "x", "max_tokens": 3, "stream": True}
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        reading = asyncio.create_task(http.post("/v1/completions", json=body))
        await scheduler.wait_requests()
        gateway.stop.set()
        await asyncio.sleep(0.3)
        with pytest.raises(httpx.ConnectError):
            async with httpx.AsyncClient(base_url=gateway.url) as late:
                await late.get("/health")
        go_on.set()
        *_, last, done = sse_events((await reading).text)
        assert done == "[DONE]"
        assert last["choices"][0]["finish_reason"] == "length"
    await gateway.task


async def test_a_stop_lets_running_calls_end_and_takes_no_connections(
    scheduler: FakeScheduler, model_folder: Path
) -> None:
    """The same on gRPC: health says so, the call that runs is complete, and who watches health holds nothing up."""
    go_on = asyncio.Event()
    scheduler.script = lambda request, index: [70, Pause(go_on), 71, 72]
    gateway = await start_gateway(scheduler, model_folder, shutdown_timeout=300)
    async with grpc.aio.insecure_channel(gateway.grpc_address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        request = generate_pb2.GenerateRequest(
            token_ids=generate_pb2.TokenIds(ids=[5]), sampling_params=generate_pb2.SamplingParams(max_tokens=3)
        )
        call = generate_pb2_grpc.GenerateServiceStub(channel).Generate(request)
        reading = asyncio.create_task(_last(call))
        await scheduler.wait_requests()
        gateway.stop.set()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        async with asyncio.timeout(30):
            while await _takes_connections(gateway.grpc_port):
                await asyncio.sleep(0.02)
        assert not gateway.task.done()
        go_on.set()
        assert (await reading).deltas[0].finish_reason == generate_pb2.FINISH_REASON_LENGTH
        async with asyncio.timeout(60):
            await gateway.task


async def _last(call: AsyncIterable[generate_pb2.GenerateResponse]) -> generate_pb2.GenerateResponse:
    return [message async for message in call][-1]


async def _takes_connections(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


async def test_what_does_not_end_in_time_is_told(scheduler: FakeScheduler, model_folder: Path) -> None:
    scheduler.script = lambda request, index: [70, Pause(asyncio.Event())]
    gateway = await start_gateway(scheduler, model_folder, shutdown_timeout=0)
    body = {"model": MODEL, "prompt": "x", "max_tokens": 3, "stream": True}
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        reading = asyncio.create_task(http.post("/v1/completions", json=body))
        await scheduler.wait_requests()
        await asyncio.sleep(0.05)
        gateway.stop.set()
        *_, error = sse_events((await reading).text)
        assert error["error"]["message"] == "the server is shutting down"
    await gateway.task
