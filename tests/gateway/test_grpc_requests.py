"""Chats, tools and malformed messages over gRPC, in front of a fake scheduler."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from support.fake_scheduler import FakeScheduler
from support.gateway_fixtures import Gateway
from tokenizers import Tokenizer

from quire.errors import InvalidRequestError
from quire.gateway.chat.deltas import ChatDelta, ToolCallDelta
from quire.gateway.chat.prompt import Tool, ToolChoice
from quire.gateway.grpc_api.requests import chat_prompt
from quire.gateway.grpc_api.responses import completion_delta, merge_responses
from quire.outputs import TokenLogprobs
from quire.v1 import generate_pb2, generate_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")

WEATHER = generate_pb2.Tool(name="weather", parameters='{"type": "object"}', strict=True)
USER = generate_pb2.ChatMessage(role="user", content="x")
MODES = generate_pb2.ToolChoice


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def channel(gateway: Gateway) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(gateway.grpc_address) as channel:
        yield channel


def chat(*messages: generate_pb2.ChatMessage, **given: Any) -> generate_pb2.ChatPrompt:
    return generate_pb2.ChatPrompt(messages=messages or [USER], **given)


async def test_a_whole_chat() -> None:
    call = generate_pb2.ToolCall(id="call-1", name="weather", arguments='{"city": "Köln"}')
    prompt = chat_prompt(
        chat(
            generate_pb2.ChatMessage(role="developer", content="be brief"),
            generate_pb2.ChatMessage(role="user", content="x", name="Ada"),
            generate_pb2.ChatMessage(role="assistant", tool_calls=[call], reasoning_content="hm"),
            generate_pb2.ChatMessage(role="tool", content="rain", tool_call_id="call-1"),
            tools=[WEATHER],
            tool_choice=MODES(mode=MODES.MODE_NAMED, name="weather"),
            parallel_tool_calls=False,
            chat_template_kwargs='{"enable_thinking": false}',
        )
    )
    function = {"name": "weather", "arguments": {"city": "Köln"}}
    assert prompt.messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "x", "name": "Ada"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "tool_calls": [{"id": "call-1", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "call-1"},
    ]
    assert prompt.tools == [Tool("weather", parameters={"type": "object"}, strict=True)]
    assert prompt.tool_choice == ToolChoice("named", "weather")
    assert prompt.template_kwargs == {"enable_thinking": False}
    assert (prompt.add_generation_prompt, prompt.parallel_tool_calls) == (True, False)


async def test_what_is_absent() -> None:
    prompt = chat_prompt(chat())
    assert (prompt.tools, prompt.tool_choice, prompt.template_kwargs) == ([], ToolChoice(), {})
    assert (prompt.add_generation_prompt, prompt.continue_final_message, prompt.parallel_tool_calls) == (
        True,
        False,
        True,
    )
    continued = chat_prompt(chat(continue_final_message=True))
    assert (continued.add_generation_prompt, continued.continue_final_message) == (False, True)


NO_OBJECT = generate_pb2.ToolCall(name="weather", arguments="[1]")


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (chat(generate_pb2.ChatMessage(content="x")), "chat.messages[0].role"),
        (chat(USER, generate_pb2.ChatMessage(role="narrator")), "chat.messages[1].role"),
        (chat(generate_pb2.ChatMessage(role="user", tool_calls=[NO_OBJECT])), "chat.messages[0].tool_calls"),
        (chat(generate_pb2.ChatMessage(role="user", tool_call_id="a")), "chat.messages[0].tool_call_id"),
        (
            chat(generate_pb2.ChatMessage(role="assistant", tool_calls=[NO_OBJECT])),
            "chat.messages[0].tool_calls[0].arguments",
        ),
        (
            chat(generate_pb2.ChatMessage(role="assistant", tool_calls=[generate_pb2.ToolCall()])),
            "chat.messages[0].tool_calls[0].name",
        ),
        (chat(tools=[generate_pb2.Tool()]), "chat.tools[0].name"),
        (chat(tools=[WEATHER, generate_pb2.Tool(name="x", parameters="{")]), "chat.tools[1].parameters"),
        (chat(tools=[generate_pb2.Tool(name="x", parameters="[" * 100_000)]), "chat.tools[0].parameters"),
        (chat(tool_choice=MODES(mode=MODES.MODE_REQUIRED)), "chat.tool_choice.mode"),
        (chat(tool_choice=MODES(mode=99)), "chat.tool_choice.mode"),  # type: ignore[arg-type]
        (
            chat(tools=[WEATHER], tool_choice=MODES(mode=MODES.MODE_NAMED, name="other")),
            "chat.tool_choice.name",
        ),
        (chat(tools=[WEATHER], tool_choice=MODES(name="weather")), "chat.tool_choice.name"),
        (chat(chat_template_kwargs="no"), "chat.chat_template_kwargs"),
        (chat(add_generation_prompt=True, continue_final_message=True), "chat.continue_final_message"),
    ],
)
async def test_bad_chats(channel: grpc.aio.Channel, prompt: generate_pb2.ChatPrompt, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        chat_prompt(prompt)
    assert caught.value.field == field
    # Over the wire, for both methods that take chats.
    stub = generate_pb2_grpc.GenerateServiceStub(channel)
    for call in (
        stub.Generate(generate_pb2.GenerateRequest(chat=prompt)).read(),
        stub.Tokenize(generate_pb2.TokenizeRequest(chat=prompt)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        check_status(refused.value, field)


def check_status(error: grpc.aio.AioRpcError, field: str | None) -> None:
    """INVALID_ARGUMENT, with the field in its details."""
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error.details()
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.metadata.get("field") == field


@pytest.mark.parametrize("method", ["Generate", "ListModels", "Tokenize", "Detokenize"])
async def test_what_is_no_message(channel: grpc.aio.Channel, method: str, caplog: pytest.LogCaptureFixture) -> None:
    path = f"/quire.v1.GenerateService/{method}"
    with caplog.at_level(logging.INFO), pytest.raises(grpc.aio.AioRpcError) as caught:
        if method == "Generate":
            async for _ in channel.unary_stream(path)(b"\xff\xff\xff"):
                pass
        else:
            await channel.unary_unary(path)(b"\xff\xff\xff")
    check_status(caught.value, None)
    # The line of a refused request, and no traceback.
    assert {record.name for record in caplog.records} <= {"quire.gateway.refusal_log"}


async def test_an_unknown_method(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/quire.v1.GenerateService/Dance")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("is_chat", [False, True])
async def test_the_first_message_carries_the_prompt(
    channel: grpc.aio.Channel, scheduler: FakeScheduler, tokenizer: Tokenizer, is_chat: bool
) -> None:
    params = generate_pb2.SamplingParams(max_tokens=3)
    request = generate_pb2.GenerateRequest(sampling_params=params, return_token_ids=True)
    if is_chat:
        request.chat.CopyFrom(chat())
    else:
        request.text = "hello"
    stub = generate_pb2_grpc.GenerateServiceStub(channel)
    first, *rest = [response async for response in stub.Generate(request)]
    rendered = "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n" if is_chat else "hello"
    assert list(first.prompt_token_ids) == tokenizer.encode(rendered).ids
    assert not any(response.prompt_token_ids for response in rest)
    assert [response.HasField("usage") for response in (first, *rest)][-1]


async def test_deltas_of_a_chat() -> None:
    delta = ChatDelta(
        index=2,
        content="a",
        reasoning_content="b",
        tool_calls=[ToolCallDelta(0, '{"x"', id="call-1", name="f")],
        token_ids=[5],
        logprobs=[TokenLogprobs(5, -0.5, ((5, -0.5),))],
        finish_reason="tool_calls",
    )
    assert completion_delta(delta) == generate_pb2.CompletionDelta(
        index=2,
        text="a",
        reasoning_content="b",
        tool_calls=[generate_pb2.ToolCallDelta(id="call-1", name="f", arguments='{"x"')],
        token_ids=[5],
        logprobs=[generate_pb2.TokenLogprobs(logprob=-0.5, top_token_ids=[5], top_logprobs=[-0.5])],
        finish_reason=generate_pb2.FINISH_REASON_TOOL_CALLS,
    )


async def test_merged_responses_say_the_same() -> None:
    def response(*deltas: generate_pb2.CompletionDelta, **given: Any) -> generate_pb2.GenerateResponse:
        return generate_pb2.GenerateResponse(request_id="r", deltas=deltas, **given)

    delta, call = generate_pb2.CompletionDelta, generate_pb2.ToolCallDelta
    stop = generate_pb2.FINISH_REASON_STOP
    merged = merge_responses(
        [
            response(delta(text="a", token_ids=[1]), delta(index=1, reasoning_content="x"), prompt_token_ids=[7, 8]),
            response(delta(index=1, reasoning_content="y", tool_calls=[call(id="i", name="f", arguments="{")])),
            response(delta(text="b", token_ids=[2, 3], finish_reason=stop, stop_string="b")),
            response(
                delta(index=1, tool_calls=[call(arguments="}"), call(index=1, id="j", name="g")], finish_reason=stop),
                usage=generate_pb2.Usage(prompt_tokens=2),
            ),
        ]
    )
    calls = [call(id="i", name="f", arguments="{}"), call(index=1, id="j", name="g")]
    assert merged == response(
        delta(text="ab", token_ids=[1, 2, 3], finish_reason=stop, stop_string="b"),
        delta(index=1, reasoning_content="xy", tool_calls=calls, finish_reason=stop),
        prompt_token_ids=[7, 8],
        usage=generate_pb2.Usage(prompt_tokens=2),
    )
