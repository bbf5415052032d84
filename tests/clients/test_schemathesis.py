"""Requests made from our own description of the API, right ones and wrong ones: no 500, no hang, no surprise."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from live_server import LiveServer
from schemathesis import checks

_EXAMPLES = 40
# A request that is right may take as long as its max_tokens, which is cut below.
_TIMEOUT_S = 60

# What the description promises: statuses, types and shapes of answers.
_CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="session")
def api(server: LiveServer) -> schemathesis.schemas.BaseSchema:
    """The API as the server describes it."""
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


described = schemathesis.pytest.from_fixture("api")


@described.parametrize()
@settings(
    max_examples=_EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
@pytest.mark.timeout(600)
def test_every_operation(case: schemathesis.Case) -> None:
    """Every answer is one that the description allows."""
    if isinstance(case.body, dict):
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            if isinstance(case.body.get(name), int | float) and case.body[name] > 8:
                case.body[name] = 8
    response = case.call(timeout=_TIMEOUT_S)
    case.validate_response(response, checks=_CHECKS)
    assert response.headers["x-request-id"]
