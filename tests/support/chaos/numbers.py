"""Requests with a wrong or extreme number in one field, for every field that takes a number."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor

from quire.v1 import generate_pb2

# Written as JSON or as what many JSON writers write.
VALUES: Final = [
    "0",
    "-1",
    "-2",
    "2147483648",
    "9223372036854775808",
    "1e400",
    "0.5",
    "NaN",
    "Infinity",
    "true",
    "[]",
    '"1"',
]
_BODIES: Final[dict[str, dict[str, Any]]] = {
    "/v1/completions": {"prompt": "x", "max_tokens": 4, "stream": True},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4, "stream": True},
    "/v1/embeddings": {"input": "x"},
    "/v1/responses": {"input": "x", "max_output_tokens": 4, "stream": True},
    "/v1/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4, "stream": True},
}


def rest_bodies(description: dict[str, Any]) -> Iterator[tuple[str, str, bytes]]:
    """Path, field and JSON body, for every numeric field that /openapi.json describes."""
    for path, body in _BODIES.items():
        schema = description["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        for field, kind in _resolve(schema, description)["properties"].items():
            if not _is_numeric(kind, description):
                continue
            for value in VALUES:
                rest = json.dumps(
                    {"model": "quire-tiny", **{key: entry for key, entry in body.items() if key != field}}
                )
                yield path, field, f'{rest[:-1]}, "{field}": {value}}}'.encode()


def _is_numeric(kind: dict[str, Any], description: dict[str, Any]) -> bool:
    kinds = [_resolve(entry, description) for entry in kind.get("anyOf", [kind])]
    return any(entry.get("type") in ("integer", "number") for entry in kinds)


def _resolve(schema: dict[str, Any], description: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        schema = description["components"]["schemas"][name]
    return schema


def grpc_requests() -> Iterator[generate_pb2.GenerateRequest]:
    """One for every numeric sampling parameter and value that its type can hold; and for the priority."""
    extremes = {
        FieldDescriptor.CPPTYPE_INT32: [0, -1, -(2**31), 2**31 - 1],
        FieldDescriptor.CPPTYPE_UINT32: [0, 2**31, 2**32 - 1],
        FieldDescriptor.CPPTYPE_UINT64: [0, 2**63, 2**64 - 1],
        FieldDescriptor.CPPTYPE_FLOAT: [0.0, -1.0, 2.0**31, math.nan, math.inf, -math.inf],
    }
    for field in generate_pb2.SamplingParams.DESCRIPTOR.fields:
        for value in extremes.get(field.cpp_type, []):
            params = generate_pb2.SamplingParams(max_tokens=4)
            if field.is_repeated:
                getattr(params, field.name).append(value)
            else:
                setattr(params, field.name, value)
            yield generate_pb2.GenerateRequest(text="x", sampling_params=params)
    for token_id in [2**31, 2**32 - 1, 2048]:
        yield generate_pb2.GenerateRequest(token_ids=generate_pb2.TokenIds(ids=[token_id]))
    for bias in [math.nan, math.inf, 101.0]:
        params = generate_pb2.SamplingParams(max_tokens=4, logit_bias={2**32 - 1: 1.0, 5: bias})
        yield generate_pb2.GenerateRequest(text="x", sampling_params=params)
    for priority in [-(2**31), 2**31 - 1]:
        yield generate_pb2.GenerateRequest(
            text="x", priority=priority, sampling_params=generate_pb2.SamplingParams(max_tokens=4)
        )
