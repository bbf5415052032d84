"""The official Python client: a chat, a stream, JSON to a schema, and a tool call.

make run                                      # in another terminal
pip install openai
python examples/openai_python.py
"""

import os

from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel, Field

client = OpenAI(base_url=os.environ.get("QUIRE_URL", "http://127.0.0.1:8000/v1"), api_key="none")
MODEL = "quire-tiny"

answer = client.chat.completions.create(
    model=MODEL, messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0
)
print(answer.choices[0].message.content)

stream = client.completions.create(
    model=MODEL, prompt="The capital of Italy is", max_tokens=8, temperature=0, stream=True
)
for chunk in stream:
    print(chunk.choices[0].text, end="", flush=True)
print()


class Person(BaseModel):
    """The answer holds to this schema, because the server samples no token that would break it."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


person = client.chat.completions.parse(
    model=MODEL,
    messages=[{"role": "user", "content": "Write a person as JSON."}],
    response_format=Person,
    temperature=0,
)
print(repr(person.choices[0].message.parsed))


class GetWeather(BaseModel):
    """Get the weather."""

    city: str


called = client.chat.completions.parse(
    model=MODEL,
    messages=[{"role": "user", "content": "What is the weather in Paris?"}],
    tools=[pydantic_function_tool(GetWeather)],
    tool_choice="required",
    temperature=0,
)
for call in called.choices[0].message.tool_calls or []:
    print(call.function.name, call.function.parsed_arguments)
