"""/v1/responses and /v1/messages of a whole server: OpenAI's own client, and bare HTTP for what it cannot say."""

from __future__ import annotations

import json

import httpx
import openai
import pytest
from pydantic import BaseModel, Field
from support.fake_chat import named_events

MODEL = "quire-tiny"
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {"type": "function", "name": "get_weather", "description": "Gets the weather.", "parameters": SCHEMA}
TOOL = {"name": "get_weather", "description": "Gets the weather.", "input_schema": SCHEMA}
WEATHER = "What is the weather in Paris?"


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=100, _strict_response_validation=True
    ) as made:
        yield made


def _post(server, path, **body):
    return httpx.post(f"{server.url}{path}", json={"model": MODEL, "temperature": 0, **body}, timeout=100)


def _respond(server, **body):
    answer = _post(server, "/v1/responses", **{"max_output_tokens": 100, **body})
    assert answer.status_code == 200, answer.text
    return answer


def _message(server, text, **body):
    messages = [{"role": "user", "content": text}]
    answer = _post(server, "/v1/messages", **{"max_tokens": 100, "messages": messages, **body})
    assert answer.status_code == 200, answer.text
    return answer


def test_a_response_and_its_stream(client):
    params = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 100}
    whole = client.responses.create(**params)
    assert (whole.output_text, whole.status) == (ANSWER, "completed")
    events = list(client.responses.create(**params, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER
    assert events[-1].response.output_text == ANSWER
    assert events[-1].response.usage.output_tokens == whole.usage.output_tokens
    with client.responses.stream(**params) as stream:
        assert stream.get_final_response().output_text == ANSWER


def test_a_conversation_goes_on_with_its_own_output(client):
    params = {"model": MODEL, "temperature": 0, "max_output_tokens": 100}
    first = client.responses.create(**params, input=[{"role": "user", "content": QUESTION}])
    items = [item.model_dump() for item in first.output]
    asked = [{"role": "user", "content": QUESTION}, *items, {"role": "user", "content": "What about Italy?"}]
    second = client.responses.create(**params, input=asked)
    assert second.status == "completed"
    # The first turn lies in the prefix cache.
    assert second.usage.input_tokens > first.usage.input_tokens


class Person(BaseModel):
    """What the model must write."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


def test_parse(client):
    response = client.responses.parse(
        model=MODEL, input="Write a person as JSON.", temperature=0, max_output_tokens=200, text_format=Person
    )
    assert isinstance(response.output_parsed, Person)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}], ids=["required", "named"])
def test_a_function_is_called_and_answered(client, choice):
    params = {"model": MODEL, "temperature": 0, "max_output_tokens": 100, "tools": [FUNCTION]}
    question = {"role": "user", "content": WEATHER}
    called = client.responses.create(**params, input=[question], tool_choice=choice)
    (call,) = [item for item in called.output if item.type == "function_call"][:1]
    assert (call.name, call.status) == ("get_weather", "completed")
    assert list(json.loads(call.arguments)) == ["city"]
    given = {"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees, sunny"}
    final = client.responses.create(**params, input=[question, call.model_dump(), given], tool_choice="none")
    assert final.output_text


def test_a_function_call_as_events(server):
    body = {"input": WEATHER, "tools": [FUNCTION], "tool_choice": "required", "parallel_tool_calls": False}
    (call,) = _respond(server, **body).json()["output"]
    events = named_events(_respond(server, **body, stream=True).text)
    deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == call["arguments"]
    (done,) = [event for event in events if event["type"] == "response.output_item.done"]
    assert (done["item"]["name"], done["item"]["arguments"]) == (call["name"], call["arguments"])


def test_a_cut_call_is_incomplete(server):
    body = {"input": WEATHER, "tools": [FUNCTION], "tool_choice": "required", "max_output_tokens": 12}
    response = _respond(server, **body).json()
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][-1]["status"] == "incomplete"


def test_logprobs_are_those_of_the_text(server):
    response = _respond(server, input=QUESTION, include=["message.output_text.logprobs"], top_logprobs=2).json()
    (part,) = response["output"][0]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in part["logprobs"]).decode() == part["text"] == ANSWER
    assert all(len(entry["top_logprobs"]) == 2 for entry in part["logprobs"])


def test_truncation_keeps_the_last_turns(server):
    turns = [{"role": "user", "content": f"Tell me a story about the number {i}. " * 5} for i in range(200)]
    asked = [*turns, {"role": "user", "content": QUESTION}]
    assert _post(server, "/v1/responses", input=asked).json()["error"]["code"] == "context_length_exceeded"
    response = _respond(server, input=asked, truncation="auto").json()
    assert response["status"] in ("completed", "incomplete")


def test_a_message_and_its_stream(server):
    message = _message(server, QUESTION, system="You are a helpful assistant.").json()
    text = message["content"][0]["text"]
    assert "Paris" in text
    assert message["stop_reason"] == "end_turn"
    events = named_events(_message(server, QUESTION, system="You are a helpful assistant.", stream=True).text)
    assert [event["type"] for event in events[:3]] == ["message_start", "ping", "content_block_start"]
    deltas = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(deltas) == text
    assert events[-2]["usage"]["output_tokens"] == message["usage"]["output_tokens"]


def test_a_message_counts_its_tokens(server):
    usage = _message(server, QUESTION, tools=[TOOL]).json()["usage"]
    body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "tools": [TOOL]}
    counted = httpx.post(f"{server.url}/v1/messages/count_tokens", json=body, timeout=100).json()
    assert counted["input_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"]


def test_a_message_goes_on_where_the_client_began(server):
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "The capital of France"}]
    assert _message(server, "", messages=messages).json()["content"][0]["text"] == " is Paris."


def test_a_message_stops_and_is_cut(server):
    stopped = _message(server, QUESTION, stop_sequences=[" is"]).json()
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", " is")
    assert stopped["content"] == [{"type": "text", "text": "The capital of France"}]
    assert _message(server, QUESTION, max_tokens=2).json()["stop_reason"] == "max_tokens"


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}], ids=["any", "tool"])
def test_a_tool_is_used_and_answered(server, choice):
    message = _message(server, WEATHER, tools=[TOOL], tool_choice=choice).json()
    assert message["stop_reason"] == "tool_use"
    uses = [block for block in message["content"] if block["type"] == "tool_use"]
    assert uses[0]["name"] == "get_weather"
    assert list(uses[0]["input"]) == ["city"]
    results = [{"type": "tool_result", "tool_use_id": use["id"], "content": "18 degrees, sunny"} for use in uses]
    said = {"role": "assistant", "content": message["content"]}
    messages = [{"role": "user", "content": WEATHER}, said, {"role": "user", "content": results}]
    final = _message(server, "", messages=messages, tools=[TOOL], tool_choice={"type": "none"}).json()
    assert final["stop_reason"] in ("end_turn", "max_tokens")
    assert final["content"][0]["type"] == "text"


def test_a_tool_use_as_events(server):
    choice = {"type": "any", "disable_parallel_tool_use": True}
    (use,) = _message(server, WEATHER, tools=[TOOL], tool_choice=choice).json()["content"]
    events = named_events(_message(server, WEATHER, tools=[TOOL], tool_choice=choice, stream=True).text)
    parts = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
    assert json.loads("".join(parts)) == use["input"]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_a_message_of_a_schema(server):
    output = {"format": {"type": "json_schema", "schema": Person.model_json_schema()}}
    message = _message(server, "Write a person as JSON.", output_config=output, max_tokens=200).json()
    Person.model_validate_json(message["content"][0]["text"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": QUESTION, "max_output_tokens": 2000}),
        ("/v1/messages", {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 2000}),
    ],
)
def test_a_client_that_leaves_frees_its_blocks(server, path, body):
    stream = {"model": MODEL, "stream": True, "temperature": 1.5, **body}
    with httpx.stream("POST", f"{server.url}{path}", json=stream, timeout=100) as answer:
        assert answer.status_code == 200, answer.read()
        next(line for line in answer.iter_lines() if "delta" in line)
    server.wait_idle()
