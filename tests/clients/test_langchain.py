"""langchain-openai against a live server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from live_server import MODEL, LiveServer
from pydantic import BaseModel, Field

ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="module")
def chat(server: LiveServer) -> ChatOpenAI:
    """Greedy, and without retries, so that nothing hides an error."""
    return ChatOpenAI(
        model=MODEL, base_url=server.base_url, api_key="none", temperature=0, max_tokens=200, max_retries=0
    )


def test_invoke(chat: ChatOpenAI) -> None:
    answer = chat.invoke(
        [SystemMessage("You are a helpful assistant."), HumanMessage("What is the capital of France?")]
    )
    assert answer.content == ANSWER
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0


def test_stream(chat: ChatOpenAI) -> None:
    whole: Any = None
    for chunk in chat.stream("What is the capital of France?"):
        whole = chunk if whole is None else whole + chunk
    assert isinstance(whole, AIMessageChunk)
    assert whole.content == ANSWER


def test_batch_in_asyncio(chat: ChatOpenAI) -> None:
    answers = asyncio.run(chat.abatch(["What is the capital of France?"] * 4))
    assert [answer.content for answer in answers] == [ANSWER] * 4


def test_a_chain(chat: ChatOpenAI) -> None:
    chain = ChatPromptTemplate.from_messages([("user", "What is the capital of {country}?")]) | chat
    assert "Rome" in chain.invoke({"country": "Italy"}).text


@tool
def get_weather(city: str) -> str:
    """Get the weather."""
    return f"18 degrees, sunny in {city}"


def test_bind_tools(chat: ChatOpenAI) -> None:
    question = HumanMessage("What is the weather in Paris?")
    asked = chat.bind_tools([get_weather], tool_choice="any").invoke([question])
    assert isinstance(asked, AIMessage)
    assert asked.invalid_tool_calls == []
    (call, *_) = asked.tool_calls
    assert call["name"] == "get_weather"
    assert list(call["args"]) == ["city"]
    replies = [get_weather.invoke(call) for call in asked.tool_calls]
    assert all(isinstance(reply, ToolMessage) for reply in replies)
    assert chat.bind_tools([get_weather]).invoke([question, asked, *replies]).response_metadata["finish_reason"]


def test_a_named_tool_in_a_stream(chat: ChatOpenAI) -> None:
    whole: Any = None
    for chunk in chat.bind_tools([get_weather], tool_choice="get_weather").stream("What is the weather in Paris?"):
        whole = chunk if whole is None else whole + chunk
    (call,) = whole.tool_calls
    assert call["name"] == "get_weather"
    assert list(call["args"]) == ["city"]


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_with_structured_output(chat: ChatOpenAI, method: Any) -> None:
    person = chat.with_structured_output(Person, method=method).invoke("Write a person as JSON.")
    assert isinstance(person, Person)


def test_the_responses_api(server: LiveServer) -> None:
    chat = ChatOpenAI(
        model=MODEL, base_url=server.base_url, api_key="none", temperature=0, max_retries=0, use_responses_api=True
    )
    assert chat.invoke("What is the capital of France?").text == ANSWER


def test_a_completion(server: LiveServer) -> None:
    model = OpenAI(model=MODEL, base_url=server.base_url, api_key="none", temperature=0, max_tokens=4, max_retries=0)
    assert model.invoke("The capital of France is").startswith(" Paris")
    assert "".join(model.stream("The capital of France is")).startswith(" Paris")


def test_embeddings(server: LiveServer) -> None:
    """Without check_embedding_ctx_length=False it would count tokens with OpenAI's own tokeniser, and send those."""
    embeddings = OpenAIEmbeddings(
        model=MODEL, base_url=server.base_url, api_key="none", check_embedding_ctx_length=False, max_retries=0
    )
    first, second = embeddings.embed_documents(["A cat", "A dog"])
    assert len(first) == len(second) > 0
    assert embeddings.embed_query("A cat") == pytest.approx(first, abs=1e-5)
