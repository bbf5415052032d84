"""Instructor: a pydantic object out of a text.

make run                                      # in another terminal
pip install instructor
python examples/instructor_extraction.py
"""

import os

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field


class Person(BaseModel):
    """What to extract."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


plain = OpenAI(base_url=os.environ.get("QUIRE_URL", "http://127.0.0.1:8000/v1"), api_key="none")
client = instructor.from_openai(plain, mode=instructor.Mode.JSON_SCHEMA)
person = client.chat.completions.create(
    model="quire-tiny",
    messages=[{"role": "user", "content": "Anna is 31 years old."}],
    response_model=Person,
    temperature=0,
)
print(repr(person))
