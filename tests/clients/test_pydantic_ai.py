"""pydantic-ai against a live server: a text, a structured result, and an agent with a tool."""

from __future__ import annotations

import pytest
from live_server import MODEL, LiveServer
from pydantic import BaseModel, Field
from pydantic_ai import Agent, ModelSettings, NativeOutput, ToolOutput
from pydantic_ai.messages import ModelResponse, ToolCallPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

GREEDY = ModelSettings(temperature=0, max_tokens=200)
ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="module")
def model(server: LiveServer) -> OpenAIChatModel:
    """The served model."""
    return OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=server.base_url, api_key="none"))


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


def test_a_text(model: OpenAIChatModel) -> None:
    result = Agent(model, model_settings=GREEDY).run_sync("What is the capital of France?")
    assert result.output == ANSWER
    assert result.usage.output_tokens > 0


async def _stream(model: OpenAIChatModel) -> str:
    async with Agent(model, model_settings=GREEDY).run_stream("What is the capital of France?") as result:
        return "".join([text async for text in result.stream_text(delta=True)])


def test_a_stream(model: OpenAIChatModel) -> None:
    import asyncio

    assert asyncio.run(_stream(model)) == ANSWER


@pytest.mark.parametrize("output", [NativeOutput(Person), ToolOutput(Person)], ids=["json_schema", "tool"])
def test_a_structured_result(model: OpenAIChatModel, output: NativeOutput[Person] | ToolOutput[Person]) -> None:
    result = Agent(model, output_type=output, model_settings=GREEDY, retries=0).run_sync("Write a person as JSON.")
    assert isinstance(result.output, Person)


def test_an_agent_with_a_tool_and_a_structured_result(model: OpenAIChatModel) -> None:
    """The model calls the tool and reads its reply; then the run is over or has called it again."""
    agent = Agent(model, model_settings=GREEDY)
    asked: list[str] = []

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """Get the weather."""
        asked.append(city)
        return "18 degrees, sunny"

    result = agent.run_sync("What is the weather in Paris?")
    assert len(asked) == 1
    assert result.output
    calls = [
        part.tool_name
        for message in result.all_messages()
        if isinstance(message, ModelResponse)
        for part in message.parts
        if isinstance(part, ToolCallPart)
    ]
    assert calls == ["get_weather"]
