"""Small constraints that cost much: time, memory or stack of whoever compiles them."""

from __future__ import annotations

import json
from typing import Any, Final


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "bomb", "schema": schema}}}


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def _doubling(levels: int) -> dict[str, Any]:
    """Each definition names the one before it twice, so that the last stands for 2^levels."""
    definitions: dict[str, Any] = {"d0": {"type": "integer"}}
    for level in range(1, levels):
        before = {"$ref": f"#/$defs/d{level - 1}"}
        definitions[f"d{level}"] = {"type": "object", "properties": {"a": before, "b": before}, "required": ["a", "b"]}
    return {"$defs": definitions, "$ref": f"#/$defs/d{levels - 1}"}


def _crossed(levels: int) -> dict[str, Any]:
    """AllOf of alternatives multiply."""
    choices = [{"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]} for i in range(levels)]
    return {"type": "object", "allOf": choices}


ALL: Final[list[dict[str, Any]]] = [
    {"structured_outputs": {"regex": "(a*)*b"}},
    {"structured_outputs": {"regex": "((((((a{0,100}){0,100}){0,100}){0,100}){0,100}){0,100})"}},
    {"structured_outputs": {"regex": "(a|b)*a(a|b){200}"}},
    {"structured_outputs": {"regex": "(" * 20_000 + "a" + ")" * 20_000}},
    {"structured_outputs": {"regex": "(?=a)b"}},
    {"structured_outputs": {"regex": "a{4294967295}"}},
    {"structured_outputs": {"grammar": 'start: start start | start start start | "a"'}},
    {"structured_outputs": {"grammar": "start: start"}},
    {"structured_outputs": {"grammar": "start: " + "(" * 10_000 + '"a"' + ")" * 10_000}},
    {"structured_outputs": {"grammar": "start: no_such_rule"}},
    {
        "structured_outputs": {
            "grammar": "\n".join(f"r{i}: r{i + 1} r{i + 1}" for i in range(2000)) + '\nstart: r0\nr2000: "a"'
        }
    },
    {"structured_outputs": {"choice": ["a" * 60_000, "a" * 59_999 + "b"]}},
    {"structured_outputs": {"choice": [f"choice {i}" for i in range(5000)]}},
    {"structured_outputs": {"json": json.dumps(_nested(400))}},
    _schema({"$ref": "#"}),
    _schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
    _schema({"$ref": "https://example.com/schema.json"}),
    _schema({"$ref": "file:///etc/passwd"}),
    _schema(_doubling(60)),
    _schema(_crossed(24)),
    _schema({"type": "string", "minLength": 10**9}),
    _schema({"type": "array", "items": {"type": "integer"}, "minItems": 10**8}),
    _schema({"type": "string", "pattern": "^(a+)+$" * 200}),
    _schema({"enum": [f"value {i}" for i in range(4000)]}),
]
