"""The gRPC API of a whole server: a plain client from the protos, and Quire's own."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from support.servers import running_server, wait_for

from quire import SamplingParams
from quire.client import AsyncClient, Client
from quire.errors import ContextLengthError, DeadlineError, InvalidRequestError, ModelNotFoundError
from quire.v1 import generate_pb2, generate_pb2_grpc

FRANCE = "The capital of France is"


@pytest.fixture(scope="module")
def server():
    with running_server() as running:
        yield running
        running.wait_idle()


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.grpc_address) as opened:
        yield opened


@pytest.fixture
def stub(channel):
    return generate_pb2_grpc.GenerateServiceStub(channel)


def _greedy(max_tokens: int = 8, **params) -> generate_pb2.SamplingParams:
    return generate_pb2.SamplingParams(temperature=0, max_tokens=max_tokens, **{"ignore_eos": True, **params})


def _text(responses) -> str:
    return "".join(delta.text for response in responses for delta in response.deltas)


def test_generate_from_text_tokens_and_chat(stub):
    request = generate_pb2.GenerateRequest(text=FRANCE, sampling_params=_greedy())
    responses = list(stub.Generate(request, timeout=30))
    assert _text(responses).startswith(" Paris")
    assert responses[-1].usage.prompt_tokens == 5
    assert responses[-1].deltas[-1].finish_reason == generate_pb2.FINISH_REASON_LENGTH
    ids = stub.Tokenize(generate_pb2.TokenizeRequest(text=FRANCE), timeout=30).token_ids
    by_ids = generate_pb2.GenerateRequest(token_ids=generate_pb2.TokenIds(ids=ids), sampling_params=_greedy())
    assert _text(stub.Generate(by_ids, timeout=30)) == _text(responses)
    chat = generate_pb2.ChatPrompt(
        messages=[generate_pb2.ChatMessage(role="user", content="What is the capital of France?")]
    )
    answer = stub.Generate(
        generate_pb2.GenerateRequest(chat=chat, sampling_params=_greedy(40, ignore_eos=False)), timeout=30
    )
    assert "Paris" in _text(answer)


def test_tokenize_and_back(stub):
    ids = stub.Tokenize(generate_pb2.TokenizeRequest(text="Grüße aus Köln 🙂"), timeout=30).token_ids
    assert stub.Detokenize(generate_pb2.DetokenizeRequest(token_ids=ids), timeout=30).text == "Grüße aus Köln 🙂"


def test_errors_have_details(stub):
    request = generate_pb2.GenerateRequest(text=FRANCE, sampling_params=generate_pb2.SamplingParams(temperature=-1))
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(request, timeout=30))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    packed = dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
    (detail,) = status_pb2.Status.FromString(packed).details
    info = error_details_pb2.ErrorInfo()
    assert detail.Unpack(info)
    assert info.metadata["field"] == "temperature"


def test_cancelling_the_call_frees_the_blocks(server, stub):
    endless = generate_pb2.SamplingParams(max_tokens=1900, ignore_eos=True, n=4)
    call = stub.Generate(generate_pb2.GenerateRequest(text="Once upon a time", sampling_params=endless), timeout=60)
    next(iter(call))
    assert server.kv_state().held_blocks > 0
    call.cancel()
    server.wait_idle()


def test_a_deadline_ends_the_request(server):
    with Client(server.grpc_address, timeout=1.0) as client:
        params = SamplingParams(max_tokens=1900, ignore_eos=True, n=8)
        with pytest.raises(DeadlineError):
            client.complete("Once upon a time", params)
    server.wait_idle()


def test_health_and_reflection(channel):
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "quire.v1.GenerateService"):
        status = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status
        assert status == health_pb2.HealthCheckResponse.SERVING
    services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"quire.v1.GenerateService", "grpc.health.v1.Health"} <= set(services)


def test_client(server):
    with Client(server.grpc_address) as client:
        assert [model.id for model in client.models()] == ["quire-tiny"]
        params = SamplingParams(temperature=0, max_tokens=8, logprobs=1, ignore_eos=True)
        output = client.complete(FRANCE, params)
        assert output.outputs[0].text.startswith(" Paris")
        assert len(output.outputs[0].logprobs) == 8
        assert "".join(delta.text for delta in client.generate(FRANCE, params)) == output.outputs[0].text
        assert client.detokenize(client.tokenize(FRANCE)) == FRANCE


async def test_async_client(server):
    async with AsyncClient(server.grpc_address) as client:
        output = await client.complete(FRANCE, SamplingParams(temperature=0, max_tokens=4))
        assert output.outputs[0].text.startswith(" Paris")


@pytest.mark.parametrize(
    ("prompt", "params", "error"),
    [
        ("", {}, InvalidRequestError),
        ([5000], {}, InvalidRequestError),
        ([7] * 3000, {}, ContextLengthError),
        (FRANCE, {"max_tokens": 10_000}, ContextLengthError),
        (FRANCE, {"n": 10_000}, InvalidRequestError),
    ],
)
def test_client_raises_what_the_server_says(server, prompt, params, error):
    with Client(server.grpc_address) as client, pytest.raises(error):
        client.complete(prompt, SamplingParams(**params))


def test_unknown_model(stub):
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(generate_pb2.GenerateRequest(model="none", text="x"), timeout=30))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert ModelNotFoundError.code.upper() in str(caught.value.trailing_metadata())


def test_a_repeated_request_id_runs_once(server, stub):
    """Two calls at once with one id are one request; both get all of it."""
    params = generate_pb2.SamplingParams(max_tokens=400, ignore_eos=True, seed=3)
    request = generate_pb2.GenerateRequest(text="Once upon a time", request_id="the-one", sampling_params=params)
    first, second = (stub.Generate(request, timeout=60) for _ in range(2))
    next(iter(first))
    wait_for(lambda: len(server.kv_state().sequences) == 1)
    texts = []
    rest = list(second)
    texts.append(_text(rest))
    assert rest[-1].usage.completion_tokens == 400
    assert all(len(server.kv_state().sequences) <= 1 for _ in range(3))
    other = generate_pb2.GenerateRequest(text="Something else", request_id="the-one", sampling_params=params)
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(other, timeout=30))
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
