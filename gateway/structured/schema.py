r"""JSON Schemas from clients: parsed, and refused where llguidance enforces less than validators will check.

llguidance itself refuses the keywords that it does not know. Of those that it does know, some are not as tight as they
look:

- It does not remember the names that an object has already. One that repeats a name has fewer properties than were
  counted, so `minProperties` holds only where names cannot be repeated.
- It writes decimal multiples of a decimal `multipleOf`. 0.3 is one of 0.1 on paper but not in binary floating point,
  in which validators compute.
- It allows a property's name in a second spelling where there is one (`\u000a` for `\n`), with any value.
- It resolves a `$ref` against an `$id` beside it, which counts in the newest drafts alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Final, NoReturn

from quire.errors import InvalidRequestError

# Their values are data, whatever they look like.
_DATA_KEYWORDS: Final = frozenset({"const", "default", "enum", "examples"})


def parse_schema(text: str) -> dict[str, Any]:
    """A schema as an object. Raises InvalidRequestError for what is none, cannot be enforced, or matches nothing."""

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON")

    try:
        schema = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"it is not valid JSON: {error}") from error
    if schema is True:
        return {}
    if schema is False:
        raise InvalidRequestError("no value matches the schema `false`")
    if not isinstance(schema, dict):
        raise InvalidRequestError("a JSON Schema is an object or a boolean")
    for part in _objects(schema):
        _check_min_properties(part)
        _check_multiple_of(part)
        _check_names(part)
        if "$ref" in part and "$id" in part and part is not schema:
            raise InvalidRequestError('"$id" beside "$ref" cannot be enforced: drafts differ in what it means')
    return schema


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object within a schema that may be a schema."""
    if isinstance(value, dict):
        yield value
        for keyword, inner in value.items():
            if keyword not in _DATA_KEYWORDS:
                yield from _objects(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _objects(inner)


def _check_min_properties(schema: dict[str, Any]) -> None:
    least = schema.get("minProperties")
    if not isinstance(least, (int, float)) or least <= 1:
        return
    is_closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    declared, required = schema.get("properties"), schema.get("required")
    certain = set(required).intersection(declared) if isinstance(declared, dict) and isinstance(required, list) else ()
    if not is_closed and least > len(certain):
        raise InvalidRequestError(
            f'"minProperties" of {least} cannot be enforced where names may be repeated; require properties by name, '
            'or close the object with "additionalProperties": false and no "patternProperties"'
        )


def _check_multiple_of(schema: dict[str, Any]) -> None:
    factor = schema.get("multipleOf")
    if isinstance(factor, float) and Decimal(repr(factor)) != Decimal(factor):
        raise InvalidRequestError(
            f'"multipleOf" of {factor} cannot be enforced: it has no exact binary form, so validators disagree about '
            "its multiples"
        )


def _check_names(schema: dict[str, Any]) -> None:
    declared = schema.get("properties")
    for name in declared if isinstance(declared, dict) else ():
        if any(character < " " for character in name):
            raise InvalidRequestError(
                f'"properties" cannot be enforced with the name {json.dumps(name)}: JSON can write it in several ways'
            )
