"""The official Anthropic client against a live server; it refuses answers that Anthropic's schema does not allow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, TextBlock, ToolUseBlock
from live_server import MODEL, LiveServer
from pydantic import BaseModel, Field

QUESTION = "What is the capital of France?"
WEATHER = "What is the weather in Paris?"
TOOL: Any = {
    "name": "get_weather",
    "description": "Gets the weather.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
# No longer an argument of the client's, but still a field of the API.
GREEDY = {"temperature": 0}


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[anthropic.Anthropic]:
    """Plain calls."""
    with anthropic.Anthropic(
        base_url=server.url, api_key="none", max_retries=0, timeout=120, _strict_response_validation=True
    ) as made:
        yield made


def _ask(client: anthropic.Anthropic, text: str = QUESTION, **params: Any) -> Message:
    messages = [{"role": "user", "content": text}]
    return client.messages.create(
        **{"model": MODEL, "max_tokens": 100, "messages": messages, "extra_body": GREEDY, **params}
    )


def _text(message: Message) -> str:
    return "".join(block.text for block in message.content if isinstance(block, TextBlock))


def test_a_text(client: anthropic.Anthropic) -> None:
    message = _ask(client, system="You are a helpful assistant.")
    assert "Paris" in _text(message)
    assert (message.role, message.stop_reason, message.stop_sequence) == ("assistant", "end_turn", None)
    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) > 0
    assert message._request_id


def test_a_stream(client: anthropic.Anthropic) -> None:
    whole = _ask(client)
    events = list(_ask(client, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    texts = [event.delta.text for event in events if event.type == "content_block_delta"]
    assert "".join(texts) == _text(whole)


def test_the_stream_helper_accumulates(client: anthropic.Anthropic) -> None:
    messages: Any = [{"role": "user", "content": QUESTION}]
    with client.messages.stream(model=MODEL, max_tokens=100, messages=messages, extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == _text(final) == _text(_ask(client))
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", _ask(client).usage.output_tokens)


def test_stop_sequences_and_the_limit(client: anthropic.Anthropic) -> None:
    stopped = _ask(client, stop_sequences=[" is"])
    assert (_text(stopped), stopped.stop_reason, stopped.stop_sequence) == (
        "The capital of France",
        "stop_sequence",
        " is",
    )
    assert _ask(client, max_tokens=2).stop_reason == "max_tokens"


def test_a_tool_is_used_and_answered(client: anthropic.Anthropic) -> None:
    used = _ask(client, WEATHER, tools=[TOOL], tool_choice={"type": "tool", "name": "get_weather"})
    assert used.stop_reason == "tool_use"
    (use,) = [block for block in used.content if isinstance(block, ToolUseBlock)]
    assert list(use.input) == ["city"]
    result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "18 degrees"}]}
    messages = [
        {"role": "user", "content": WEATHER},
        {"role": "assistant", "content": used.content},
        {"role": "user", "content": [result]},
    ]
    assert _text(_ask(client, messages=messages, tools=[TOOL], tool_choice={"type": "none"}))


def test_a_stream_of_a_tool_use(client: anthropic.Anthropic) -> None:
    messages: Any = [{"role": "user", "content": WEATHER}]
    choice: Any = {"type": "any", "disable_parallel_tool_use": True}
    with client.messages.stream(
        model=MODEL, max_tokens=100, messages=messages, tools=[TOOL], tool_choice=choice, extra_body=GREEDY
    ) as stream:
        parts = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    (use,) = final.content
    assert isinstance(use, ToolUseBlock)
    assert json.loads("".join(parts)) == use.input
    assert final.stop_reason == "tool_use"


class Person(BaseModel):
    """What the model must write."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


def test_an_answer_of_a_schema(client: anthropic.Anthropic) -> None:
    config = {"format": {"type": "json_schema", "schema": Person.model_json_schema()}}
    Person.model_validate_json(_text(_ask(client, "Write a person as JSON.", output_config=config, max_tokens=200)))


def test_counting_tokens(client: anthropic.Anthropic) -> None:
    messages: Any = [{"role": "user", "content": QUESTION}]
    usage = _ask(client).usage
    counted = client.messages.count_tokens(model=MODEL, messages=messages).input_tokens
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)


@pytest.mark.parametrize(
    ("params", "error", "kind"),
    [
        ({"model": "claude-none"}, anthropic.NotFoundError, "not_found_error"),
        ({"max_tokens": 0}, anthropic.BadRequestError, "invalid_request_error"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, anthropic.BadRequestError, "invalid_request_error"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "x"}}]}]},
            anthropic.BadRequestError,
            "invalid_request_error",
        ),
    ],
    ids=["model", "max_tokens", "tools", "image"],
)
def test_errors(
    client: anthropic.Anthropic, params: dict[str, Any], error: type[anthropic.APIStatusError], kind: str
) -> None:
    with pytest.raises(error) as caught:
        _ask(client, **params)
    body: Any = caught.value.body
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert body["request_id"] == caught.value.request_id
