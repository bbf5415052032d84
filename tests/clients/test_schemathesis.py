"""Requests made from our own description of the API, right ones and wrong ones: no 500, no hang, no surprise."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_server import MODEL, LiveServer
from schemathesis import GenerationMode, checks
from schemathesis.schemas import APIOperation

_EXAMPLES = 40
# A request that is right may take as long as its max_tokens, which is cut below.
_TIMEOUT_S = 60

# What a request may ask for depends on the server, and on how long a test may take.
_SMALL = {
    "n": 2,
    "best_of": 2,
    "top_logprobs": 2,
    "prompt_logprobs": 2,
    "truncate_prompt_tokens": 5,
    "min_tokens": 3,
    "max_tokens": 8,
    "max_completion_tokens": 8,
    "max_output_tokens": 8,
}

# Texts that every model takes.
_PLAIN: dict[str, Any] = {
    "prompt": "Hello",
    "messages": [{"role": "user", "content": "Hello"}],
    "input": "Hello",
    "query": "Hello",
    "documents": ["Hello", "Goodbye"],
    "text_1": "Hello",
    "text_2": ["Goodbye"],
}

# What the description promises: statuses, types and shapes of answers.
_CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


def _fit(body: dict[str, Any]) -> None:
    """Makes a right body one that this model can take: what depends on the model is not in the description."""
    for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
        body.pop(name, None)
    body["model"] = MODEL
    body.update({name: value for name, value in _PLAIN.items() if name in body})
    if body.get("stream") is not True:
        body.pop("stream_options", None)
    body.update({name: value for name, value in _SMALL.items() if body.get(name)})


@settings(
    max_examples=_EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def _exercise(operation: APIOperation, generation: GenerationMode, data: st.DataObject) -> None:
    case = data.draw(operation.as_strategy(generation_mode=generation))
    if isinstance(case.body, dict) and generation is GenerationMode.POSITIVE:
        _fit(case.body)
    response = case.call(timeout=_TIMEOUT_S)
    case.validate_response(response, checks=_CHECKS)
    assert response.headers["x-request-id"]


@pytest.mark.timeout(1200)
def test_every_operation(server: LiveServer) -> None:
    """Every answer to a right request, and to a wrong one, is one that the description allows."""
    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [result.ok() for result in api.get_all_operations()]
    assert {"/v1/completions", "/v1/chat/completions", "/tokenize", "/v1/models"} <= {each.path for each in operations}
    for operation in operations:
        _exercise(operation, GenerationMode.POSITIVE)
        if operation.body:
            _exercise(operation, GenerationMode.NEGATIVE)
