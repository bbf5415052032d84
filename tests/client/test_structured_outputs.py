"""StructuredOutputs: exactly one constraint, and the way over the wire."""

from __future__ import annotations

from typing import Any

import pytest

from quire.errors import InvalidRequestError
from quire.structured_outputs import StructuredOutputs


@pytest.mark.parametrize(
    "given",
    [
        {"json": '{"type": "integer"}'},
        {"json_object": True},
        {"regex": "a+"},
        {"choice": ("yes", "no")},
        {"grammar": 'start: "a"'},
        {"json": "false", "disable_any_whitespace": True},
    ],
)
def test_the_wire_keeps_everything(given: dict[str, Any]) -> None:
    outputs = StructuredOutputs(**given)
    assert StructuredOutputs.from_proto(outputs.to_proto()) == outputs


def test_a_schema_may_be_an_object() -> None:
    outputs = StructuredOutputs(json={"type": "object"})
    assert outputs.to_proto().json == '{"type": "object"}'
    assert StructuredOutputs(json=False).to_proto().json == "false"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "not none"),
        ({"json_object": False}, "not none"),
        ({"regex": "a", "choice": ["b"]}, "not regex and choice"),
        ({"json": False, "regex": "a"}, "not json and regex"),
        ({"regex": 1}, "regex has the wrong type"),
        ({"choice": "yes"}, "choice has the wrong type"),
        ({"choice": []}, "at least one string"),
        ({"choice": [1]}, "at least one string"),
        ({"surprise": 1}, "structured_outputs.surprise"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        StructuredOutputs.from_json(given)
    assert caught.value.field is not None
    assert caught.value.field.startswith("structured_outputs")


def test_nulls_are_as_if_absent() -> None:
    assert StructuredOutputs.from_json({"json": None, "regex": "a"}) == StructuredOutputs(regex="a")
