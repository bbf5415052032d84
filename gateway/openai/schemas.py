"""What /openapi.json says of bodies, answers and errors, from the types that read and write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from quire.gateway.openai.errors import ErrorBody

_PREFIX = "#/components/schemas/"
_TEMPLATE = _PREFIX + "{name}"

# Of every route that takes a body; what each stands for is written in quire.errors.
ERRORS = {
    "400": "The request can never succeed as it is; `param` names the field at fault.",
    "401": "The request carries none of the server's API keys.",
    "404": "The model is not served.",
    "413": "The body is too large.",
    "415": "The body is said to be something else than JSON.",
    "429": "The server has as many requests as it may have.",
    "500": "A defect of the server.",
    "503": "The server cannot take requests now.",
}


# Of a stream, each event (https://html.spec.whatwg.org/multipage/server-sent-events.html).
EVENT = {
    "type": "object",
    "properties": {"data": {"type": "string"}, "event": {"type": "string"}},
    "required": ["data"],
}

Body = type[BaseModel]


def describe_route(
    body: Body | tuple[Body, ...],
    answer: Any,
    *,
    streams: bool = False,
    error: Any = ErrorBody,
    errors: Mapping[str, str] = ERRORS,
) -> dict[str, Any]:
    """Arguments of a route that reads `body` (or one of several) and answers with `answer`, a msgspec type.

    `streams`: or with server-sent events. `errors`: by status, all written as `error`. `add_components` adds what
    this refers to.
    """
    content = {"application/json": {"schema": _reference(answer)}}
    if streams:
        content["text/event-stream"] = {"schema": EVENT}
    description = "The answer; a stream if asked for." if streams else "The answer."
    responses = {"200": {"description": description, "content": content}, **_errors(errors, error)}
    bodies = [{"$ref": _PREFIX + kind.__name__} for kind in (body if isinstance(body, tuple) else (body,))]
    schema = bodies[0] if len(bodies) == 1 else {"anyOf": bodies}
    request = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {"openapi_extra": {"requestBody": request}, "responses": responses}


def describe_answer(answer: Any, parameters: Sequence[dict[str, Any]] = (), *errors: str) -> dict[str, Any]:
    """Arguments of a route without a body."""
    content = {"application/json": {"schema": _reference(answer)}}
    responses = {
        "200": {"description": "The answer.", "content": content},
        **_errors({status: ERRORS[status] for status in ("401", "500", *errors)}),
    }
    return {"openapi_extra": {"parameters": list(parameters)}, "responses": responses}


def _reference(answer: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([answer], ref_template=_TEMPLATE)
    return schema


def _errors(descriptions: Mapping[str, str], error: Any = ErrorBody) -> dict[str, Any]:
    content = {"application/json": {"schema": _reference(error)}}
    return {status: {"description": text, "content": content} for status, text in descriptions.items()}


def add_components(openapi: dict[str, Any], bodies: Sequence[Body], answers: Sequence[Any]) -> None:
    """Adds the JSON schemas of bodies and answers to an OpenAPI document."""
    modes: list[tuple[Body, Literal["validation"]]] = [(body, "validation") for body in bodies]
    _, definitions = models_json_schema(modes, ref_template=_PREFIX + "{model}")
    _, components = msgspec.json.schema_components([*answers, ErrorBody], ref_template=_TEMPLATE)
    schemas = openapi.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(definitions["$defs"])
    schemas.update(components)
