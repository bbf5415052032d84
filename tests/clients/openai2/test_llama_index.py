"""llama-index's client for servers that speak OpenAI's API."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from live_server import MODEL, LiveServer
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field

QUESTION = [ChatMessage(role="user", content="What is the capital of France?")]
ANSWER = "The capital of France is Paris."


def _model(server: LiveServer, **options: Any) -> OpenAILike:
    return OpenAILike(
        model=MODEL,
        api_base=server.base_url,
        api_key="none",
        context_window=2048,
        temperature=0,
        max_tokens=200,
        max_retries=0,
        **options,
    )


@pytest.fixture(scope="module")
def chat_model(server: LiveServer) -> OpenAILike:
    """For chats."""
    return _model(server, is_chat_model=True, is_function_calling_model=True)


def test_complete(server: LiveServer) -> None:
    model = _model(server, is_chat_model=False)
    whole = model.complete("The capital of France is", max_tokens=8).text
    assert whole.startswith(" Paris")
    *_, last = model.stream_complete("The capital of France is", max_tokens=8)
    assert last.text == whole


def test_complete_as_a_chat(chat_model: OpenAILike) -> None:
    assert chat_model.complete("What is the capital of France?").text == ANSWER


def test_chat(chat_model: OpenAILike) -> None:
    answer = chat_model.chat(QUESTION)
    assert answer.message.content == ANSWER


def test_stream_chat(chat_model: OpenAILike) -> None:
    chunks = list(chat_model.stream_chat(QUESTION))
    assert "".join(chunk.delta or "" for chunk in chunks) == ANSWER
    assert chunks[-1].message.content == ANSWER


def test_asyncio(chat_model: OpenAILike) -> None:
    async def ask() -> list[Any]:
        return await asyncio.gather(*(chat_model.achat(QUESTION) for _ in range(4)))

    assert [answer.message.content for answer in asyncio.run(ask())] == [ANSWER] * 4


def get_weather(city: str) -> str:
    """Get the weather."""
    return f"18 degrees in {city}"


def test_a_tool_call(chat_model: OpenAILike) -> None:
    answer = chat_model.chat_with_tools(
        [FunctionTool.from_defaults(get_weather)], user_msg="What is the weather in Paris?", tool_required=True
    )
    (call, *_) = chat_model.get_tool_calls_from_response(answer)
    assert call.tool_name == "get_weather"
    assert list(call.tool_kwargs) == ["city"]


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


def test_a_structured_answer(chat_model: OpenAILike) -> None:
    answer = chat_model.as_structured_llm(Person).complete("Write a person as JSON.")
    assert isinstance(answer.raw, Person)
