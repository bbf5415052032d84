"""Tool calls through the official client. The bundled model calls the right tool; it invents the arguments."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from live_server import MODEL
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

QUESTION: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]


def _function(name: str, description: str, **properties: str) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


WEATHER = _function("get_weather", "Get the weather", city="string")
TIME = _function("get_time", "Get the time", city="string")


def _ask(client: openai.OpenAI, messages: list[Any] = QUESTION, **params: Any) -> ChatCompletion:
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, **{"temperature": 0, "max_completion_tokens": 150, "tools": [WEATHER], **params}
    )
    assert isinstance(answer, ChatCompletion)
    return answer


def _arguments(call: Any) -> dict[str, Any]:
    return json.loads(call.function.arguments)


def test_auto_calls_a_tool_where_one_is_needed(client: openai.OpenAI) -> None:
    (choice,) = _ask(client).choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert call.id
    assert call.function.name == "get_weather"
    assert isinstance(_arguments(call), dict)


def test_none_calls_no_tool(client: openai.OpenAI) -> None:
    (choice,) = _ask(client, tool_choice="none").choices
    assert choice.finish_reason in {"stop", "length"}
    assert not choice.message.tool_calls


def test_required_calls_a_tool_with_valid_arguments(client: openai.OpenAI) -> None:
    """Even where the model would rather talk."""
    messages = [{"role": "user", "content": "Hello!"}]
    (choice,) = _ask(client, messages, tools=[WEATHER, TIME], tool_choice="required").choices
    assert choice.finish_reason == "tool_calls"
    for call in choice.message.tool_calls or []:
        assert call.type == "function"
        assert call.function.name in {"get_weather", "get_time"}
        assert set(_arguments(call)) == {"city"}
    assert choice.message.tool_calls


def test_a_named_tool_is_the_one_that_is_called(client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "get_time"}}
    (choice,) = _ask(client, tools=[WEATHER, TIME], tool_choice=named).choices
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_time"
    assert list(_arguments(call)) == ["city"]
    assert choice.finish_reason in {"stop", "tool_calls"}  # OpenAI says stop where the caller named the tool


def test_a_stream_of_a_call_adds_up_to_it(client: openai.OpenAI) -> None:
    whole = _ask(client, tool_choice="required").choices[0].message.tool_calls or []
    stream = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        temperature=0,
        max_completion_tokens=150,
        tools=[WEATHER],
        tool_choice="required",
        stream=True,
    )
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    reasons = []
    for chunk in stream:
        (choice,) = chunk.choices
        reasons.append(choice.finish_reason)
        for call in choice.delta.tool_calls or []:
            assert call.function is not None
            if call.index not in names:
                assert call.id
                assert call.type == "function"
                names[call.index] = call.function.name or ""
            arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")
    assert reasons == [None] * (len(reasons) - 1) + ["tool_calls"]
    assert list(names.values()) == [call.function.name for call in whole if call.type == "function"]
    assert list(arguments.values()) == [call.function.arguments for call in whole if call.type == "function"]


def test_arguments_come_in_pieces(client: openai.OpenAI) -> None:
    """A reader of a stream sees a long argument grow."""
    with client.chat.completions.stream(
        model=MODEL,
        messages=QUESTION,
        temperature=0,
        max_completion_tokens=150,
        tools=[WEATHER],
        tool_choice="required",
    ) as stream:
        pieces = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
        final = stream.get_final_completion().choices[0]
    assert len(pieces) > 1
    assert final.message.tool_calls
    assert pieces[-1].arguments == final.message.tool_calls[-1].function.arguments


def test_a_cut_call_ends_with_length(client: openai.OpenAI) -> None:
    (choice,) = _ask(client, tool_choice="required", max_completion_tokens=12).choices
    assert choice.finish_reason == "length"


def test_one_call_where_parallel_ones_are_not_wanted(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "What is the weather in Paris and Rome?"}]
    (choice,) = _ask(client, messages, tool_choice="required", parallel_tool_calls=False).choices
    assert len(choice.message.tool_calls or []) == 1


def test_the_reply_of_a_tool_is_read(client: openai.OpenAI) -> None:
    (choice,) = _ask(client).choices
    (call,) = choice.message.tool_calls or []
    reply = {"role": "tool", "tool_call_id": call.id, "content": "18 degrees, sunny"}
    (final,) = _ask(client, [*QUESTION, choice.message, reply]).choices
    assert final.finish_reason == "stop"
    assert final.message.content


class GetWeather(BaseModel):
    """Get the weather."""

    city: str
    days: int


def test_parse_checks_the_arguments_of_a_strict_tool(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL,
        messages=QUESTION,
        temperature=0,
        max_completion_tokens=200,
        tools=[openai.pydantic_function_tool(GetWeather)],
        tool_choice="required",
    )
    for call in answer.choices[0].message.tool_calls or []:
        assert isinstance(call.function.parsed_arguments, GetWeather)
    assert answer.choices[0].message.tool_calls


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "none_such"}}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools"),
        ({"tools": openai.NOT_GIVEN, "tool_choice": "required"}, "tool_choice"),
    ],
    ids=["a tool that is not there", "a bad name", "no tools"],
)
def test_bad_tools_are_refused(client: openai.OpenAI, params: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        _ask(client, **params)
    assert (caught.value.param or "").startswith(param)
