"""The gRPC API of a whole server: a plain client from the protos, and Quire's own."""

from __future__ import annotations

import json

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from support.servers import wait_for

from quire import PoolingParams, SamplingParams
from quire.client import AsyncClient, Client
from quire.errors import ContextLengthError, DeadlineError, InvalidRequestError, ModelNotFoundError
from quire.v1 import generate_pb2, generate_pb2_grpc

FRANCE = "The capital of France is"


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


def test_client_embeds(server):
    with Client(server.grpc_address) as client:
        one, two = client.embed([FRANCE, client.tokenize(FRANCE)])
        assert one == pytest.approx(two)
        assert len(client.embed(FRANCE, PoolingParams(dimensions=8))[0]) == 8
        with pytest.raises(InvalidRequestError) as caught:
            client.embed([FRANCE, 5])
        assert caught.value.field == "inputs[1]"


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]


async def test_client_calls_tools(server):
    named = {"type": "function", "function": {"name": "get_weather"}}
    params = SamplingParams(temperature=0, max_tokens=120)
    async with AsyncClient(server.grpc_address) as client:
        for choice in ("required", named):
            output = await client.complete(
                QUESTION, params, tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False, return_token_ids=True
            )
            (turn,) = output.outputs
            (call,) = turn.tool_calls
            assert (turn.finish_reason, turn.text, call.name) == ("tool_calls", "", "get_weather")
            assert set(json.loads(call.arguments)) == {"city"}
            assert call.id
            assert output.prompt_token_ids == await client.tokenize(QUESTION, tools=[WEATHER], tool_choice=choice)
        # What the tool says goes back into the chat.
        answer = {"role": "tool", "content": "rain", "tool_call_id": call.id}
        function = {"name": call.name, "arguments": call.arguments}
        called = {"role": "assistant", "tool_calls": [{"id": call.id, "type": "function", "function": function}]}
        output = await client.complete([*QUESTION, called, answer], params, tools=[WEATHER], tool_choice="none")
        assert output.outputs[0].tool_calls == []


def test_a_truncated_call_ends_with_length(server):
    with Client(server.grpc_address) as client:
        params = SamplingParams(temperature=0, max_tokens=8)
        output = client.complete(QUESTION, params, tools=[WEATHER], tool_choice="required")
    assert output.outputs[0].finish_reason == "length"


def test_a_repeated_chat_joins_its_run(server):
    with Client(server.grpc_address) as client:
        first, again = (
            client.complete(QUESTION, params, tools=[WEATHER], tool_choice="required", request_id="calls")
            for params in [SamplingParams(temperature=0, max_tokens=120, seed=1)] * 2
        )
    assert first.outputs[0].tool_calls == again.outputs[0].tool_calls != []


def test_logprobs_of_the_prompt(server):
    with Client(server.grpc_address) as client:
        params = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=1)
        output = client.complete(FRANCE, params)
        assert output.prompt_token_ids == client.tokenize(FRANCE)
    first, *rest = output.prompt_logprobs
    assert first is None
    assert len(rest) == len(output.prompt_token_ids) - 1
    assert all(token_id in entry for token_id, entry in zip(output.prompt_token_ids[1:], rest, strict=True))


def test_beam_search_gives_cumulative_logprobs(server):
    with Client(server.grpc_address) as client:
        params = SamplingParams(n=2, use_beam_search=True, max_tokens=4)
        output = client.complete(FRANCE, params)
        chat = client.complete(QUESTION, params)
    for given in (output, chat):
        better, worse = (turn.cumulative_logprob for turn in given.outputs)
        assert 0 > better >= worse


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
