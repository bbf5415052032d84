"""What callers may give, and what is said of the rest."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from quire.client import AsyncClient, Client, RetryPolicy
from quire.client.requests import generate_request, tokenize_request
from quire.errors import InvalidRequestError, ServiceUnavailableError
from quire.sampling_params import SamplingParams
from quire.v1 import generate_pb2

USER = {"role": "user", "content": "x"}
FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}


@pytest.mark.parametrize(
    "token_ids", [[5, 6], (5, 6), np.array([5, 6], dtype=np.int32), iter([5, 6]), [np.int64(5), 6], range(5, 7)]
)
def test_token_ids_of_any_kind(token_ids: Any) -> None:
    assert list(generate_request(token_ids, None, {}).token_ids.ids) == [5, 6]


def test_a_chat_with_tools() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]
    request = generate_request(
        messages,
        None,
        {
            "tools": [{"type": "function", "function": FUNCTION}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "parallel_tool_calls": False,
            "chat_template_kwargs": {"enable_thinking": False},
            "priority": 3,
            "cache_salt": "s",
        },
    )
    assert request.chat == generate_pb2.ChatPrompt(
        messages=[
            generate_pb2.ChatMessage(role="user", content="x"),
            generate_pb2.ChatMessage(
                role="assistant", tool_calls=[generate_pb2.ToolCall(id="c", name="f", arguments='{"a": 1}')]
            ),
        ],
        tools=[generate_pb2.Tool(name="f", description="d", parameters='{"type": "object"}', strict=True)],
        tool_choice=generate_pb2.ToolChoice(mode=generate_pb2.ToolChoice.MODE_NAMED, name="f"),
        parallel_tool_calls=False,
        chat_template_kwargs='{"enable_thinking": false}',
    )
    assert (request.priority, request.cache_salt) == (3, "s")


@pytest.mark.parametrize(
    ("prompt", "options", "field"),
    [
        (None, {}, "prompt"),
        (5, {}, "prompt"),
        (b"x", {}, "prompt"),
        ("\ud800", {}, "prompt"),
        ([1.5], {}, "prompt"),
        ([True], {}, "prompt"),
        ([-1], {}, "prompt"),
        ([2**32], {}, "prompt"),
        ([[1, 2]], {}, "prompt"),
        ([None], {}, "prompt"),
        (["a"], {}, "prompt"),
        ([USER, 5], {}, "prompt"),
        ([{"role": "user", "content": 5}], {}, "messages[0].content"),
        ([{"role": "user", "content": "\ud800"}], {}, "messages[0].content"),
        ([USER, {"role": "user", "text": "x"}], {}, "messages[1].text"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], {}, "messages[0].tool_calls[0].function.name"),
        ([{"role": "assistant", "tool_calls": [5]}], {}, "messages[0].tool_calls[0]"),
        ([USER], {"tools": [{"function": {"name": 5}}]}, "tools[0].function.name"),
        ([USER], {"tools": [{"function": {**FUNCTION, "parameters": "{}"}}]}, "tools[0].function.parameters"),
        ([USER], {"tools": [{"function": {**FUNCTION, "strict": "yes"}}]}, "tools[0].function.strict"),
        ([USER], {"tool_choice": "sometimes"}, "tool_choice"),
        ([USER], {"tool_choice": {"function": {}}}, "tool_choice.function.name"),
        ([USER], {"chat_template_kwargs": {"a": object()}}, "chat_template_kwargs"),
        ([USER], {"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ("x", {"tools": []}, "tools"),
        ("x", {"priority": 2**40}, "priority"),
        ("x", {"request_id": 5}, "request_id"),
        ("x", {"timeout": 0}, "timeout"),
        ("x", {"timeout": float("nan")}, "timeout"),
        ("x", {"timeout": "soon"}, "timeout"),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_sent(prompt: Any, options: Any, field: str) -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(InvalidRequestError) as caught:
        client.generate(prompt, **options)
    assert caught.value.field == field
    with pytest.raises(InvalidRequestError) as caught:
        AsyncClient("127.0.0.1:1").generate(prompt, **options)
    assert caught.value.field == field


def test_parameters_of_another_kind() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        generate_request("x", {"max_tokens": 5}, {})  # type: ignore[arg-type]
    assert caught.value.field == "params"
    assert generate_request("x", SamplingParams(), {}).request_id


def test_what_is_tokenised() -> None:
    assert tokenize_request("x", False, {}) == generate_pb2.TokenizeRequest(text="x", add_special_tokens=False)
    assert tokenize_request([USER], True, {"add_generation_prompt": False}).chat.HasField("add_generation_prompt")
    with pytest.raises(InvalidRequestError):
        tokenize_request([5], True, {})


def test_a_client_can_be_made_before_there_is_a_loop() -> None:
    client = AsyncClient("127.0.0.1:1", retry=RetryPolicy(max_attempts=1))

    async def use() -> None:
        with pytest.raises(ServiceUnavailableError):
            await client.models()
        await client.close()

    asyncio.run(use())
    asyncio.run(AsyncClient("127.0.0.1:1").close())
