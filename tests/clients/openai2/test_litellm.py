"""litellm, which reaches any server of OpenAI's API by the prefix openai/ (chats) or text-completion-openai/."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import pytest
from live_server import MODEL, LiveServer

# Otherwise it fetches a price list while it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def where(server: LiveServer) -> dict[str, Any]:
    """What every call needs."""
    return {"api_base": server.base_url, "api_key": "none", "num_retries": 0, "temperature": 0, "max_tokens": 200}


def test_a_chat(where: dict[str, Any]) -> None:
    answer = litellm.completion(model=f"openai/{MODEL}", messages=QUESTION, **where)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens > 0


def test_a_stream(where: dict[str, Any]) -> None:
    stream = litellm.completion(model=f"openai/{MODEL}", messages=QUESTION, stream=True, **where)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == ANSWER


def test_asyncio(where: dict[str, Any]) -> None:
    async def ask() -> list[Any]:
        calls = (litellm.acompletion(model=f"openai/{MODEL}", messages=QUESTION, **where) for _ in range(4))
        return await asyncio.gather(*calls)

    assert [answer.choices[0].message.content for answer in asyncio.run(ask())] == [ANSWER] * 4


def test_a_text_completion(where: dict[str, Any]) -> None:
    answer = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}", prompt="The capital of France is", **where
    )
    assert answer.choices[0].text.startswith(" Paris")


def test_a_tool_call(where: dict[str, Any]) -> None:
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    answer = litellm.completion(
        model=f"openai/{MODEL}", messages=question, tools=[WEATHER], tool_choice="required", **where
    )
    (call, *_) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert "city" in json.loads(call.function.arguments)
    assert answer.choices[0].finish_reason == "tool_calls"


def test_json(where: dict[str, Any]) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
    question = [{"role": "user", "content": "Write a person as JSON."}]
    answer = litellm.completion(model=f"openai/{MODEL}", messages=question, response_format=wanted, **where)
    assert set(json.loads(answer.choices[0].message.content)) == {"name", "age"}


def test_embeddings(server: LiveServer) -> None:
    answer = litellm.embedding(
        model=f"openai/{MODEL}", input=["A cat", "A dog"], api_base=server.base_url, api_key="none"
    )
    assert [item["index"] for item in answer.data] == [0, 1]


def test_the_responses_api(server: LiveServer) -> None:
    answer = litellm.responses(
        model=f"openai/{MODEL}", input=QUESTION[0]["content"], api_base=server.base_url, api_key="none", temperature=0
    )
    assert answer.output_text == ANSWER


def test_an_error(where: dict[str, Any]) -> None:
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="openai/gpt-none", messages=QUESTION, **where)
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(model=f"openai/{MODEL}", messages=[], **where)
