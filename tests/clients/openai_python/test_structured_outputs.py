"""JSON that is held to a schema, through the official client."""

from __future__ import annotations

import json
from enum import Enum
from typing import Any

import openai
import pytest
from live_server import MODEL
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

QUESTION: list[Any] = [{"role": "user", "content": "Write a person as JSON."}]


class Colour(Enum):
    """What an enum looks like in a schema."""

    RED = "red"
    BLUE = "blue"


class Address(BaseModel):
    """A nested object, which pydantic puts under $defs."""

    city: str
    zip_code: str | None


class Person(BaseModel):
    """Everything that a typical schema has."""

    name: str
    age: int
    colour: Colour
    address: Address
    tags: list[str]


def _ask(client: openai.OpenAI, **params: Any) -> ChatCompletion:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, **{"temperature": 0, "max_completion_tokens": 300, **params}
    )
    assert isinstance(answer, ChatCompletion)
    return answer


def _bounded_schema() -> dict[str, Any]:
    """One whose outputs are short, whatever the model is like."""
    properties = {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 120}}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def test_parse_gives_a_pydantic_object(client: openai.OpenAI) -> None:
    """Strings have no bound, so a small model may run on; then the client says so, and nothing else may happen."""
    try:
        answer = client.chat.completions.parse(
            model=MODEL, messages=QUESTION, temperature=0, max_completion_tokens=600, response_format=Person
        )
    except openai.LengthFinishReasonError as error:
        assert error.completion.choices[0].finish_reason == "length"
    else:
        assert isinstance(answer.choices[0].message.parsed, Person)
        assert answer.choices[0].finish_reason == "stop"


def test_json_schema(client: openai.OpenAI) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": _bounded_schema()}}
    (choice,) = _ask(client, response_format=wanted).choices
    assert choice.finish_reason == "stop"
    person = json.loads(choice.message.content or "")
    assert list(person) == ["name", "age"]
    assert len(person["name"]) <= 20
    assert 0 <= person["age"] <= 120


def test_json_schema_in_a_stream_and_at_a_high_temperature(client: openai.OpenAI) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": _bounded_schema()}}
    for seed in range(3):
        stream = client.chat.completions.create(
            model=MODEL,
            messages=QUESTION,
            temperature=1.5,
            seed=seed,
            max_completion_tokens=300,
            response_format=wanted,
            stream=True,
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert set(json.loads(text)) == {"name", "age"}


def test_json_object(client: openai.OpenAI) -> None:
    (choice,) = _ask(client, response_format={"type": "json_object"}).choices
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content or ""), dict)
    else:
        assert (choice.message.content or "").lstrip().startswith("{")


def test_text_is_the_default_format(client: openai.OpenAI) -> None:
    assert _ask(client, response_format={"type": "text"}).choices == _ask(client).choices


@pytest.mark.parametrize(
    ("constraint", "allowed"),
    [({"choice": ["yes", "no"]}, {"yes", "no"}), ({"regex": "(cat|dog) 7"}, {"cat 7", "dog 7"})],
    ids=["choice", "regex"],
)
def test_constraints_in_vllms_words(client: openai.OpenAI, constraint: dict[str, Any], allowed: set[str]) -> None:
    (choice,) = _ask(client, extra_body={"structured_outputs": constraint}).choices
    assert choice.message.content in allowed


@pytest.mark.parametrize(
    "schema", [{"type": "no-such-type"}, {"type": "array", "uniqueItems": True}], ids=["invalid", "unenforceable"]
)
def test_a_schema_that_cannot_be_enforced_is_refused(client: openai.OpenAI, schema: dict[str, Any]) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "bad", "strict": True, "schema": schema}}
    with pytest.raises(openai.BadRequestError) as caught:
        _ask(client, response_format=wanted)
    assert (caught.value.param or "").startswith("response_format")


def test_an_unenforceable_keyword_is_named(client: openai.OpenAI) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    wanted = {"type": "json_schema", "json_schema": {"name": "bad", "strict": True, "schema": schema}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        _ask(client, response_format=wanted)
