"""/v1/responses through the official client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from live_server import MODEL
from openai.types.responses import Response, ResponseFunctionToolCall
from pydantic import BaseModel

QUESTION = "What is the capital of France?"
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


def _ask(client: openai.OpenAI, **params: Any) -> Response:
    answer = client.responses.create(
        **{"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 200, **params}
    )
    assert isinstance(answer, Response)
    return answer


def test_a_text(client: openai.OpenAI) -> None:
    answer = _ask(client)
    assert (answer.object, answer.status, answer.error) == ("response", "completed", None)
    assert answer.output_text == "The capital of France is Paris."
    (message,) = answer.output
    assert (message.type, message.role) == ("message", "assistant")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_instructions_and_a_chat(client: openai.OpenAI) -> None:
    chat = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "The capital of France is Paris."},
        {"role": "user", "content": [{"type": "input_text", "text": "What is the capital of Italy?"}]},
    ]
    assert "Rome" in _ask(client, input=chat, instructions="You are a helpful assistant.").output_text


def test_a_stream_has_numbered_events_in_order(client: openai.OpenAI) -> None:
    events = list(
        client.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=200, stream=True)
    )
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    order = ["response.output_item.added", "response.content_part.added", "response.output_text.delta"]
    order += ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    positions = [kinds.index(kind) for kind in order]
    assert positions == sorted(positions)
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert events[-1].type == "response.completed"
    assert text == events[-1].response.output_text == _ask(client).output_text


def test_the_stream_helper_accumulates(client: openai.OpenAI) -> None:
    with client.responses.stream(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=200) as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    assert final.output_text == "The capital of France is Paris."


def test_a_cut_answer_is_incomplete(client: openai.OpenAI) -> None:
    answer = _ask(client, input="Tell me a story.", max_output_tokens=16)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


def test_a_function_call_and_its_output(client: openai.OpenAI) -> None:
    question = {"role": "user", "content": "What is the weather in Paris?"}
    answer = _ask(client, input=[question], tools=[WEATHER], tool_choice="required")
    calls = [item for item in answer.output if item.type == "function_call"]
    assert isinstance(calls[0], ResponseFunctionToolCall)
    assert calls[0].name == "get_weather"
    assert list(json.loads(calls[0].arguments)) == ["city"]
    reply = {"type": "function_call_output", "call_id": calls[0].call_id, "output": "18 degrees, sunny"}
    final = _ask(client, input=[question, calls[0].model_dump(), reply], tools=[WEATHER])
    assert final.status == "completed"
    assert final.output


def test_a_stream_of_a_function_call(client: openai.OpenAI) -> None:
    events = list(
        client.responses.create(
            model=MODEL,
            input="What is the weather in Paris?",
            temperature=0,
            max_output_tokens=200,
            tools=[WEATHER],
            tool_choice={"type": "function", "name": "get_weather"},
            stream=True,
        )
    )
    assert [event.sequence_number for event in events] == list(range(len(events)))
    arguments = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert done.arguments == arguments
    assert list(json.loads(arguments)) == ["city"]


class City(BaseModel):
    """An answer that is held to a schema."""

    capital: bool
    rank: int


def test_parse_gives_a_pydantic_object(client: openai.OpenAI) -> None:
    answer = client.responses.parse(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=300, text_format=City)
    assert answer.status == "incomplete" or isinstance(answer.output_parsed, City)


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"temperature": 9}, "temperature"),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
    ],
    ids=["temperature", "previous_response_id", "web_search"],
)
def test_bad_requests(client: openai.OpenAI, params: dict[str, Any], param: str) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
        _ask(client, **params)
    assert (caught.value.param or "").startswith(param)
