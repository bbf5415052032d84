"""LangChain: a stream, a tool, and a structured answer.

make run                                      # in another terminal
pip install langchain-openai
python examples/langchain_chat.py
"""

import os

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

chat = ChatOpenAI(
    model="quire-tiny",
    base_url=os.environ.get("QUIRE_URL", "http://127.0.0.1:8000/v1"),
    api_key="none",
    temperature=0,
)

for chunk in chat.stream("What is the capital of France?"):
    print(chunk.text, end="", flush=True)
print()


@tool
def get_weather(city: str) -> str:
    """Get the weather."""
    return f"18 degrees and sunny in {city}"


asked = chat.bind_tools([get_weather], tool_choice="any").invoke("What is the weather in Paris?")
for call in asked.tool_calls:
    print(get_weather.invoke(call).content)


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


print(repr(chat.with_structured_output(Person).invoke("Write a person as JSON.")))
