"""Wrong and extreme numbers in every numeric field: served, or refused by a message that names the field.

The fields come from /openapi.json and the protobuf descriptors, so new ones are covered as they appear.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2
from support.gateway_fixtures import MODEL, Gateway
from support.numeric_fields import EVERY, Path, extreme_messages, json_fields, put

from quire.v1 import generate_pb2, generate_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")

# As they are written in JSON, or by those who write what JSON does not have.
VALUES = ["-1", "9223372036854775808", "1e308", "NaN", "true"]
OTHERS = ["0", "0.5", "2147483648", "1e400", "Infinity", "-Infinity", "false", '"1"', "null", "[]"]
_CONTEXT = "maximum context length"
_MARK = "the value goes here"

_CHAT = {"messages": [{"role": "user", "content": "x"}]}
# The least that each route takes. A route that takes numbers and is not here fails the test.
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/completions": [{"prompt": "x", "max_tokens": 3}],
    "/v1/chat/completions": [{**_CHAT, "max_tokens": 3}],
    "/v1/responses": [{"input": "x", "max_output_tokens": 3}],
    "/v1/messages": [{**_CHAT, "max_tokens": 3}],
    "/v1/messages/count_tokens": [_CHAT],
    "/v1/embeddings": [{"input": "x"}],
    "/v1/score": [{"text_1": "x", "text_2": "y"}],
    "/rerank": [{"query": "x", "documents": ["y"]}],
    "/tokenize": [{"prompt": "x"}, _CHAT],
    "/detokenize": [{}],
}
# What a number inside needs beside it.
_AROUND = {"thinking": {"type": "enabled"}}


@pytest.mark.parametrize("values", [VALUES, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["worst", "others"])
async def test_every_field_of_the_rest_api(gateway: Gateway, scheduler, http, values: list[str]) -> None:
    description = (await http.get("/openapi.json")).json()
    problems: list[str] = []
    num_requests = 0
    for route, methods in description["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        if "application/json" not in content:
            continue
        fields = json_fields(content["application/json"]["schema"], description["components"]["schemas"])
        cases = [
            (body, field, value) for body in BODIES[route] for field in sorted(fields, key=str) for value in VALUES
        ]
        num_requests += len(cases)
        found = await asyncio.gather(*(_problem(http, route, *case) for case in cases))
        problems += [problem for problem in found if problem]
    assert not problems, f"{len(problems)} of {num_requests}:\n" + "\n".join(problems)
    assert num_requests > 500


_AT_ONCE = asyncio.Semaphore(16)


async def _problem(http, route: str, body: dict[str, Any], field: Path, value: str) -> str | None:
    """What is wrong with the answer, if anything."""
    whole = {"model": MODEL, **body}
    if field[0] in _AROUND and len(field) > 1:
        whole[field[0]] = _AROUND[field[0]]
    text = json.dumps(put(whole, field, _MARK)).replace(f'"{_MARK}"', value)
    async with _AT_ONCE:
        answer = await http.post(route, content=text, headers={"content-type": "application/json"})
    said = f"{route} {'.'.join(map(str, field))} = {value}: {answer.status_code} {answer.text[:300]}"
    if answer.status_code == 200:
        return None if _is_sane(answer.text) else said
    if answer.status_code not in (400, 404, 422):
        return said
    name = next(part for part in reversed(field) if isinstance(part, str) and part != EVERY)
    error = answer.json()["error"]
    is_named = name in f"{error.get('param')} {error['message']}"
    # Of JSON that is none no field is known; and the context has a message of its own, which names both parts.
    is_json = value not in ("NaN", "Infinity", "-Infinity", "1e400")
    return None if is_named or not is_json or _CONTEXT in error["message"] else said


def _is_sane(text: str) -> bool:
    """Whether it is JSON, which has neither NaN nor infinities."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        parsed = json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return isinstance(parsed, dict) and parsed.get("error") is None


CALLS = [
    (
        "Generate",
        generate_pb2.GenerateRequest(text="x", sampling_params=generate_pb2.SamplingParams(max_tokens=3)),
    ),
    ("Generate", generate_pb2.GenerateRequest(token_ids=generate_pb2.TokenIds(ids=[1]))),
    ("Embed", generate_pb2.EmbedRequest(inputs=[generate_pb2.EmbedInput(text="x")])),
    ("Tokenize", generate_pb2.TokenizeRequest(text="x")),
    ("Detokenize", generate_pb2.DetokenizeRequest()),
]


async def test_every_field_of_the_grpc_api(gateway: Gateway, scheduler) -> None:
    cases = [(name, field, message) for name, call in CALLS for field, message in extreme_messages(call)]
    async with grpc.aio.insecure_channel(gateway.grpc_address) as channel:
        stub = generate_pb2_grpc.GenerateServiceStub(channel)
        found = await asyncio.gather(*(_grpc_problem(getattr(stub, case[0]), *case) for case in cases))
    problems = [problem for problem in found if problem]
    assert not problems, f"{len(problems)} of {len(cases)}:\n" + "\n".join(problems)
    assert len(cases) > 150


async def _grpc_problem(method, name: str, field: str, message) -> str | None:
    said = f"{name} {field} in {json_format.MessageToDict(message)}"
    async with _AT_ONCE:
        try:
            call = method(message, timeout=30)
            answers = [await call] if name != "Generate" else [answer async for answer in call]
        except grpc.aio.AioRpcError as error:
            is_named = field.rsplit(".", 1)[-1] in f"{_field_of(error)} {error.details()}"
            is_named |= field == "token_ids.ids" or _CONTEXT in error.details()
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT and is_named:
                return None
            return f"{said}: {error.code()} {_field_of(error)} {error.details()}"
    embeddings = [value for answer in answers if name == "Embed" for one in answer.embeddings for value in one.values]
    return None if all(map(math.isfinite, embeddings)) else f"{said}: an embedding that is no number"


def _field_of(error: grpc.aio.AioRpcError) -> str | None:
    packed = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    if not isinstance(packed, bytes):
        return None
    info = error_details_pb2.ErrorInfo()
    for detail in status_pb2.Status.FromString(packed).details:
        if detail.Unpack(info):
            return info.metadata["field"]
    return None
