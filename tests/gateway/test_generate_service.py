from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from support.fake_scheduler import MAX_MODEL_LEN, VOCAB_SIZE, FakeScheduler, Pause, running
from support.gateway_fixtures import MODEL, Gateway, start_gateway
from tokenizers import Tokenizer

from quire.errors import ContextLengthError, ServiceUnavailableError
from quire.internal.v1 import scheduler_pb2
from quire.v1 import generate_pb2, generate_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")

Stub: TypeAlias = "generate_pb2_grpc.GenerateServiceAsyncStub"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def channel(gateway: Gateway) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(gateway.grpc_address) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.aio.Channel, scheduler: FakeScheduler) -> Stub:
    return generate_pb2_grpc.GenerateServiceStub(channel)


def request(text: str = "hello", *, request_id: str = "", **params: Any) -> generate_pb2.GenerateRequest:
    params = {"max_tokens": 4, **params}
    return generate_pb2.GenerateRequest(
        text=text, request_id=request_id, sampling_params=generate_pb2.SamplingParams(**params)
    )


async def responses(stub: Stub, message: generate_pb2.GenerateRequest) -> list[generate_pb2.GenerateResponse]:
    return [response async for response in stub.Generate(message)]


def text_of(received: list[generate_pb2.GenerateResponse], index: int = 0) -> str:
    return "".join(delta.text for response in received for delta in response.deltas if delta.index == index)


async def check_error(
    stub: Stub, message: generate_pb2.GenerateRequest, code: grpc.StatusCode, reason: str, field: str | None
) -> str:
    """Fails with this status and these details, before any message; returns what it says."""
    received = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for response in stub.Generate(message):
            received.append(response)
    assert received == []
    assert caught.value.code() is code, caught.value.details()
    status = rpc_status.from_call(caught.value)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, info.metadata.get("field")) == (reason, "quire.dev", field)
    return caught.value.details() or ""


async def test_generate(stub: Stub, scheduler: FakeScheduler, tokenizer: Tokenizer) -> None:
    scheduler.cached_tokens = 1
    scheduler.script = lambda submitted, index: tokenizer.encode("Paris 😀").ids
    count = len(tokenizer.encode("Paris 😀").ids)
    received = await responses(stub, request(n=2, max_tokens=count, logprobs=1))
    for index in range(2):
        assert text_of(received, index) == "Paris 😀"
    deltas = [delta for response in received for delta in response.deltas]
    assert all(len(delta.logprobs) == len(delta.token_ids) for delta in deltas)
    assert sum(delta.finish_reason == generate_pb2.FINISH_REASON_LENGTH for delta in deltas) == 2
    assert [response.HasField("usage") for response in received] == [False] * (len(received) - 1) + [True]
    assert received[-1].usage == generate_pb2.Usage(prompt_tokens=1, completion_tokens=2 * count, cached_tokens=1)
    assert len({response.request_id for response in received}) == 1
    assert received[0].request_id


async def test_prompts_of_three_kinds(stub: Stub, scheduler: FakeScheduler, tokenizer: Tokenizer) -> None:
    chat = generate_pb2.ChatPrompt(messages=[generate_pb2.ChatMessage(role="user", content="x")])
    await responses(stub, request("hello"))
    await responses(stub, generate_pb2.GenerateRequest(token_ids=generate_pb2.TokenIds(ids=[5, 6])))
    await responses(stub, generate_pb2.GenerateRequest(chat=chat, model=MODEL))
    prompts = [submitted.prompt_token_ids for submitted in scheduler.requests]
    rendered = "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    assert prompts == [tokenizer.encode("hello").ids, [5, 6], tokenizer.encode(rendered).ids]


async def test_stop_reasons(stub: Stub, scheduler: FakeScheduler, tokenizer: Tokenizer) -> None:
    letters = tokenizer.encode("x").ids + tokenizer.encode("y").ids
    scheduler.script = lambda submitted, index: letters
    by_string = (await responses(stub, request(stop=["y"])))[-1].deltas[0]
    assert (by_string.finish_reason, by_string.stop_string) == (generate_pb2.FINISH_REASON_STOP, "y")
    by_token = (await responses(stub, request(stop_token_ids=letters[1:])))[-1].deltas[0]
    assert by_token.stop_token_id == letters[1]


async def test_bad_input(stub: Stub, scheduler: FakeScheduler) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    nan = float("nan")
    for params, field in [
        ({"temperature": -1}, "temperature"),
        ({"temperature": nan}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"stop": [""]}, "stop"),
        ({"stop_token_ids": [VOCAB_SIZE]}, "stop_token_ids"),
        ({"logit_bias": {VOCAB_SIZE: 1}}, "logit_bias"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
    ]:
        await check_error(stub, request(**params), invalid, "INVALID_VALUE", field)
    await check_error(stub, request(""), invalid, "INVALID_VALUE", "text")
    await check_error(stub, generate_pb2.GenerateRequest(), invalid, "INVALID_VALUE", "prompt")
    ids = generate_pb2.GenerateRequest(token_ids=generate_pb2.TokenIds(ids=[1, 600]))
    assert "600" in await check_error(stub, ids, invalid, "INVALID_VALUE", "token_ids")
    long = generate_pb2.GenerateRequest(token_ids=generate_pb2.TokenIds(ids=[1] * MAX_MODEL_LEN))
    await check_error(stub, long, invalid, "CONTEXT_LENGTH_EXCEEDED", "token_ids")
    no_role = generate_pb2.ChatPrompt(messages=[generate_pb2.ChatMessage(content="x")])
    chat = generate_pb2.GenerateRequest(chat=no_role)
    await check_error(stub, chat, invalid, "INVALID_VALUE", "chat.messages[0].role")
    other = generate_pb2.GenerateRequest(model="other", text="x")
    await check_error(stub, other, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "model")
    await check_error(stub, request(request_id="x" * 257), invalid, "INVALID_VALUE", "request_id")
    assert scheduler.requests == []


async def test_what_the_scheduler_refuses(stub: Stub, scheduler: FakeScheduler) -> None:
    scheduler.submit_error = ContextLengthError("too long", field="max_tokens")
    code = grpc.StatusCode.INVALID_ARGUMENT
    await check_error(stub, request(), code, "CONTEXT_LENGTH_EXCEEDED", "max_tokens")
    scheduler.submit_error = ServiceUnavailableError("full")
    await check_error(stub, request(), grpc.StatusCode.UNAVAILABLE, "SERVICE_UNAVAILABLE", None)


async def test_cancelling_the_call_aborts(stub: Stub, scheduler: FakeScheduler) -> None:
    scheduler.script = lambda submitted, index: [70, Pause(asyncio.Event())]
    call = stub.Generate(request())
    await call.read()
    call.cancel()
    (abort,) = await scheduler.wait_aborts()
    assert abort.reason == scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED


async def test_a_passed_deadline_aborts(stub: Stub, scheduler: FakeScheduler) -> None:
    scheduler.script = lambda submitted, index: [70, Pause(asyncio.Event())]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.Generate(request(), timeout=0.2):
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    (abort,) = await scheduler.wait_aborts()
    assert abort.reason == scheduler_pb2.ABORT_REASON_DEADLINE_EXCEEDED


async def test_a_repeated_request_id_joins_the_run(stub: Stub, scheduler: FakeScheduler) -> None:
    go_on = asyncio.Event()
    scheduler.script = lambda submitted, index: [70, 71, Pause(go_on), 72, 73]
    first = stub.Generate(request(request_id="same"))
    await first.read()
    second = aiter(stub.Generate(request(request_id="same")))
    whole = [await anext(second)]
    await check_error(
        stub, request("other", request_id="same"), grpc.StatusCode.ALREADY_EXISTS, "DUPLICATE_REQUEST_ID", "request_id"
    )
    # The first leaves; the second goes on.
    first.cancel()
    await asyncio.sleep(0.1)
    assert scheduler.aborts == []
    go_on.set()
    whole += [response async for response in second]
    assert [token for response in whole for delta in response.deltas for token in delta.token_ids] == [70, 71, 72, 73]
    # It is remembered for a while.
    again = await responses(stub, request(request_id="same"))
    assert text_of(again) == text_of(whole)
    assert again[-1].usage == whole[-1].usage
    assert len(scheduler.requests) == 1


async def test_models_and_tokens(stub: Stub, tokenizer: Tokenizer) -> None:
    (model,) = (await stub.ListModels(generate_pb2.ListModelsRequest())).models
    assert (model.id, model.max_model_len) == (MODEL, MAX_MODEL_LEN)
    tokenized = await stub.Tokenize(generate_pb2.TokenizeRequest(text="hello 😀"))
    assert list(tokenized.token_ids) == tokenizer.encode("hello 😀").ids
    assert tokenized.max_model_len == MAX_MODEL_LEN
    text = await stub.Detokenize(generate_pb2.DetokenizeRequest(token_ids=tokenized.token_ids))
    assert text.text == "hello 😀"
    message = generate_pb2.ChatMessage(role="user", content="x")
    chat = generate_pb2.ChatPrompt(messages=[message], add_generation_prompt=False)
    tokenized = await stub.Tokenize(generate_pb2.TokenizeRequest(chat=chat))
    assert list(tokenized.token_ids) == tokenizer.encode("<|im_start|>user\nx<|im_end|>\n").ids
    for call, code in [
        (stub.Tokenize(generate_pb2.TokenizeRequest()), grpc.StatusCode.INVALID_ARGUMENT),
        (stub.Tokenize(generate_pb2.TokenizeRequest(model="other", text="x")), grpc.StatusCode.NOT_FOUND),
        (
            stub.Detokenize(generate_pb2.DetokenizeRequest(token_ids=[VOCAB_SIZE])),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
    ]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is code


async def test_reflection(channel: grpc.aio.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    call = stub.ServerReflectionInfo(iter([asked]))
    answer = await call.read()
    names = {service.name for service in answer.list_services_response.service}
    assert {"quire.v1.GenerateService", "grpc.health.v1.Health"} <= names


async def test_health_follows_the_scheduler(model_folder: Path, tmp_path: Path) -> None:
    async with running(FakeScheduler(tmp_path / "s.sock")) as scheduler:
        gateway = await start_gateway(scheduler, model_folder)
        async with grpc.aio.insecure_channel(gateway.grpc_address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for service in ("", "quire.v1.GenerateService"):
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            await scheduler.crash()
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            await scheduler.start()
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        await gateway.close()
