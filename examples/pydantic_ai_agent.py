"""Pydantic AI: an agent with a tool, and one with a structured answer.

make run                                      # in another terminal
pip install 'pydantic-ai-slim[openai]'
python examples/pydantic_ai_agent.py
"""

import os

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=os.environ.get("QUIRE_URL", "http://127.0.0.1:8000/v1"), api_key="none")
model = OpenAIChatModel("quire-tiny", provider=provider)

agent = Agent(model, model_settings={"temperature": 0})


@agent.tool_plain
def get_weather(city: str) -> str:
    """Get the weather."""
    return "18 degrees, sunny"


print(agent.run_sync("What is the weather in Paris?").output)


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


writer = Agent(model, output_type=NativeOutput(Person), model_settings={"temperature": 0})
print(repr(writer.run_sync("Write a person as JSON.").output))
