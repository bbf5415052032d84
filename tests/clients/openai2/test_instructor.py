"""instructor: pydantic objects out of a chat, by each way that it knows for OpenAI's API."""

from __future__ import annotations

import instructor
import openai
import pytest
from live_server import MODEL, LiveServer
from pydantic import BaseModel, Field

QUESTION = [{"role": "user", "content": "Write a person as JSON."}]


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


@pytest.mark.parametrize(
    "mode",
    [instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA],
    ids=lambda mode: mode.value,
)
def test_extraction(server: LiveServer, mode: instructor.Mode) -> None:
    """No retries: the first answer has to be valid."""
    with openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0) as plain:
        client = instructor.from_openai(plain, mode=mode)
        person = client.chat.completions.create(
            model=MODEL, messages=QUESTION, response_model=Person, temperature=0, max_tokens=300, max_retries=0
        )
    assert isinstance(person, Person)


def test_a_stream_of_partial_objects(server: LiveServer) -> None:
    with openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0) as plain:
        client = instructor.from_openai(plain, mode=instructor.Mode.JSON_SCHEMA)
        partials = list(
            client.chat.completions.create_partial(
                model=MODEL, messages=QUESTION, response_model=Person, temperature=0, max_tokens=300, max_retries=0
            )
        )
    assert partials[-1].name is not None
    assert partials[-1].age is not None
