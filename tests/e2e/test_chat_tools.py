"""Tools and thoughts with the bundled model, through OpenAI's own client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

MODEL = "quire-tiny"
CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Get the weather", "parameters": CITY},
}
TIME = {"type": "function", "function": {"name": "get_time", "description": "Get the time", "parameters": CITY}}
QUESTION = {"role": "user", "content": "What is the weather in Paris?"}
TWO_CITIES = {"role": "user", "content": "What is the weather in Paris and Rome?"}
FRANCE = {"role": "user", "content": "What is the capital of France?"}


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def _ask(client, message, **params):
    fields = {"temperature": 0, "max_completion_tokens": 120, "tools": [WEATHER, TIME], **params}
    return client.chat.completions.create(model=MODEL, messages=[message], **fields).choices[0]


def _arguments(call) -> dict[str, Any]:
    arguments = json.loads(call.function.arguments)
    assert isinstance(arguments, dict)
    return arguments


def test_the_model_calls_when_it_should(client):
    choice = _ask(client, QUESTION)
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert call.function.name == "get_weather"
    assert call.id.startswith("call_")
    assert _arguments(call)


def test_the_model_answers_when_it_should(client):
    for choice_of_tools in ("auto", "none"):
        choice = _ask(client, FRANCE, tool_choice=choice_of_tools)
        assert choice.message.content == "The capital of France is Paris."
        assert choice.message.tool_calls is None
        assert choice.finish_reason == "stop"


@pytest.mark.parametrize("question", [QUESTION, FRANCE], ids=["weather", "France"])
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_required_and_named_calls_follow_their_schemas(client, question, temperature):
    """Whatever the question and however hot: only max_tokens can cut a call, and its city may be long then."""
    for tool_choice, reason in (
        ("required", "tool_calls"),
        ({"type": "function", "function": {"name": "get_time"}}, "stop"),
    ):
        choice = _ask(client, question, tool_choice=tool_choice, temperature=temperature, seed=3)
        assert choice.finish_reason in (reason, "length")
        complete = choice.message.tool_calls[:-1] if choice.finish_reason == "length" else choice.message.tool_calls
        assert all(isinstance(_arguments(call)["city"], str) for call in complete)
        if tool_choice != "required":
            assert [call.function.name for call in choice.message.tool_calls] == ["get_time"]


def test_several_calls_or_one(client):
    for tool_choice in ("auto", "required"):
        asked = {"tools": [WEATHER], "tool_choice": tool_choice}
        first, second = _ask(client, TWO_CITIES, **asked).message.tool_calls
        assert first.id != second.id
        assert len(_ask(client, TWO_CITIES, **asked, parallel_tool_calls=False).message.tool_calls) == 1


def test_a_strict_function_is_called_by_its_schema(client):
    """The model would write `location` if nobody held it."""
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    (call,) = _ask(client, QUESTION, tools=[strict]).message.tool_calls
    assert list(_arguments(call)) == ["city"]
    assert _ask(client, FRANCE, tools=[strict]).message.content == "The capital of France is Paris."


@pytest.mark.parametrize("tool_choice", ["auto", "required"])
def test_a_stream_says_the_same(client, tool_choice):
    whole = _ask(client, TWO_CITIES, tool_choice=tool_choice)
    with client.chat.completions.stream(
        model=MODEL,
        messages=[TWO_CITIES],
        temperature=0,
        max_completion_tokens=120,
        tools=[WEATHER, TIME],
        tool_choice=tool_choice,
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion().choices[0]
    deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert len(deltas) > len(final.message.tool_calls)
    assert final.finish_reason == whole.finish_reason
    assert [(call.function.name, call.function.arguments) for call in final.message.tool_calls] == [
        (call.function.name, call.function.arguments) for call in whole.message.tool_calls
    ]


def test_a_cut_call_ends_with_length(client):
    choice = _ask(client, QUESTION, tool_choice="required", max_completion_tokens=18)
    assert choice.finish_reason == "length"


def test_a_result_goes_back(client):
    asked = _ask(client, QUESTION).message
    result = {"role": "tool", "tool_call_id": asked.tool_calls[0].id, "content": "20 degrees, sunny"}
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[QUESTION, asked.model_dump(), result],
        tools=[WEATHER],
        temperature=0,
        max_completion_tokens=60,
    ).choices[0]
    assert "20 degrees" in answer.message.content
    assert answer.finish_reason == "stop"


def test_thoughts(client):
    choice = _ask(client, FRANCE, tools=openai.omit, reasoning_effort="low")
    assert choice.message.reasoning_content
    assert choice.message.content == "The capital of France is Paris."
    stream = client.chat.completions.create(
        model=MODEL, messages=[FRANCE], temperature=0, max_completion_tokens=120, reasoning_effort="low", stream=True
    )
    thoughts = [getattr(chunk.choices[0].delta, "reasoning_content", None) or "" for chunk in stream]
    assert "".join(thoughts) == choice.message.reasoning_content
    hidden = _ask(client, FRANCE, tools=openai.omit, reasoning_effort="low", extra_body={"include_reasoning": False})
    assert hidden.message.content == choice.message.content
    assert not hasattr(hidden.message, "reasoning_content")


def test_calls_with_several_continuations(client):
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[QUESTION],
        tools=[WEATHER],
        tool_choice="required",
        n=3,
        temperature=1,
        seed=1,
        max_completion_tokens=120,
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    ids = [call.id for choice in answer.choices for call in choice.message.tool_calls or []]
    assert len(set(ids)) == len(ids) >= 3


def test_a_message_is_continued(client):
    begun = {"role": "assistant", "content": "The capital of"}
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[FRANCE, begun],
        temperature=0,
        max_completion_tokens=40,
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )
    assert answer.choices[0].message.content == " France is Paris."
