from __future__ import annotations

import json
from typing import Any

import pytest

from quire.errors import InvalidRequestError
from quire.gateway.anthropic.request import MessagesRequest
from quire.gateway.chat.prompt import Tool, ToolChoice
from quire.gateway.openai.protocol import parse_request

USER = {"role": "user", "content": "hi"}
TOOL = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}
USE = {"type": "tool_use", "id": "t1", "name": "look", "input": {"where": "Paris"}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "sunny"}


def request(**fields: Any) -> MessagesRequest:
    body = {"model": "m", "max_tokens": 2000, "messages": [USER], **fields}
    return parse_request(MessagesRequest, json.dumps(body).encode())


def messages(*given: Any, **fields: Any) -> list[Any]:
    return list(request(messages=list(given), **fields).chat().messages)


def test_the_system_prompt_comes_first() -> None:
    assert messages(USER, system="Be brief.") == [{"role": "system", "content": "Be brief."}, USER]
    blocks = [{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}} for text in ("Be", "brief.")]
    assert messages(USER, system=blocks)[0]["content"] == "Be\nbrief."
    assert messages(USER, system="") == [USER]
    assert messages(USER, {"role": "system", "content": "Now rhyme."}, USER)[1]["role"] == "system"


def test_what_the_user_says_in_a_row_is_one_turn() -> None:
    blocks = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert messages({"role": "user", "content": blocks}, USER) == [{"role": "user", "content": "hel\nlo\nhi"}]


def test_thoughts_words_and_uses_are_one_turn() -> None:
    said = [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "I look."},
        USE,
        {**USE, "id": "t2", "input": {}},
    ]
    given = [RESULT, {**RESULT, "tool_use_id": "t2", "content": None}, {"type": "text", "text": "Well?"}]
    called = [
        {"id": "t1", "type": "function", "function": {"name": "look", "arguments": {"where": "Paris"}}},
        {"id": "t2", "type": "function", "function": {"name": "look", "arguments": {}}},
    ]
    assert messages(USER, {"role": "assistant", "content": said}, {"role": "user", "content": given})[1:] == [
        {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": called},
        {"role": "tool", "tool_call_id": "t1", "name": "look", "content": "sunny"},
        {"role": "tool", "tool_call_id": "t2", "name": "look", "content": ""},
        {"role": "user", "content": "Well?"},
    ]


def test_results_that_are_errors_say_so() -> None:
    result = {**RESULT, "is_error": True, "content": [{"type": "text", "text": "no such place"}]}
    said = {"role": "assistant", "content": [USE]}
    assert messages(USER, said, {"role": "user", "content": [result]})[-1]["content"] == "Error: no such place"


def test_an_answer_that_the_client_begins_goes_on() -> None:
    chat = request(messages=[USER, {"role": "assistant", "content": "The answer is"}]).chat()
    assert (chat.add_generation_prompt, chat.continue_final_message) == (False, True)
    chat = request().chat()
    assert (chat.add_generation_prompt, chat.continue_final_message) == (True, False)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, ToolChoice("auto")),
        ({"type": "auto"}, ToolChoice("auto")),
        ({"type": "any"}, ToolChoice("required")),
        ({"type": "none"}, ToolChoice("none")),
        ({"type": "tool", "name": "look"}, ToolChoice("named", "look")),
    ],
)
def test_tools_and_their_choice(given: Any, wanted: ToolChoice) -> None:
    chat = request(tools=[TOOL], tool_choice=given).chat()
    assert chat.tools == [Tool("look", "Looks.", {"type": "object"})]
    assert chat.tool_choice == wanted
    assert chat.parallel_tool_calls


def test_parallel_calls_can_be_switched_off() -> None:
    choice = {"type": "any", "disable_parallel_tool_use": True}
    assert not request(tools=[TOOL], tool_choice=choice).chat().parallel_tool_calls


def test_thinking_and_effort_are_told_to_the_template() -> None:
    def variables(**fields: Any) -> Any:
        return request(**fields).chat().template_kwargs

    assert variables() == {}
    assert variables(thinking={"type": "enabled", "budget_tokens": 1024}) == {"enable_thinking": True}
    assert variables(thinking={"type": "adaptive", "display": "summarized"}) == {"enable_thinking": True}
    assert variables(thinking={"type": "disabled"}) == {"enable_thinking": False}
    assert variables(output_config={"effort": "high"}) == {"reasoning_effort": "high"}


def test_sampling() -> None:
    params = request(temperature=0, top_p=0.5, top_k=3, stop_sequences=["x"]).sampling_params()
    assert (params.n, params.max_tokens, params.temperature, params.top_p, params.top_k) == (1, 2000, 0, 0.5, 3)
    assert params.stop == ["x"]
    assert params.structured_outputs is None
    schema = {"type": "object"}
    written = request(output_config={"format": {"type": "json_schema", "schema": schema}}).sampling_params()
    assert written.structured_outputs is not None
    assert written.structured_outputs.json == schema


def test_what_asks_for_nothing_is_taken() -> None:
    request(
        cache_control={"type": "ephemeral"},
        container=None,
        mcp_servers=[],
        metadata={"user_id": "u"},
        service_tier="auto",
        speed="standard",
        stream=False,
        tools=[{**TOOL, "type": "custom", "cache_control": {"type": "ephemeral"}, "eager_input_streaming": True}],
    )


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    ({"messages": [{**USER, "name": "x"}]}, "messages[0].name"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [USE]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [RESULT]}]}, "messages[0].content[0].tool_use_id"),
    ({"messages": [{"role": "assistant", "content": [RESULT]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "assistant", "content": [{"type": "redacted_thinking"}]}]}, "messages[0].content[0]"),
    ({"messages": [USER, {"role": "assistant", "content": [USE]}]}, "messages"),
    ({"system": [{"type": "image"}]}, "system[0]"),
    ({"stop_sequences": ["x"] * 100}, "stop_sequences"),
    ({"stop_sequences": "x"}, "stop_sequences"),
    ({"temperature": -1}, "temperature"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"name": "look"}]}, "tools[0].input_schema"),
    ({"tools": [{**TOOL, "defer_loading": True}]}, "tools[0].defer_loading"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"tool_choice": {"type": "none", "name": "look"}}, "tool_choice.name"),
    ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1023}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "adaptive", "display": "omitted"}}, "thinking.display"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ({"mcp_servers": [{}]}, "mcp_servers"),
    ({"container": "c"}, "container"),
    ({"speed": "fast"}, "speed"),
    ({"store": True}, "store"),
]


@pytest.mark.parametrize(("fields", "field"), BAD, ids=lambda value: str(value)[:60])
def test_bad_requests_name_the_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        made = request(**fields)
        with made.in_its_words():
            made.chat()
            made.sampling_params()
    assert caught.value.field == field
    assert caught.value.message
