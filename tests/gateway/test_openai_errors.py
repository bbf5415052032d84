from __future__ import annotations

import json

import pytest

from quire.errors import QuireError, all_errors
from quire.gateway.openai.errors import error_response


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_has_its_status_and_shape(kind: type[QuireError]) -> None:
    answer = error_response(kind("what is wrong", field="n"))
    assert answer.status_code == kind.http_status
    error = json.loads(bytes(answer.body))["error"]
    assert error == {"message": "what is wrong", "type": kind.type, "param": "n", "code": kind.code}


def test_a_defect_keeps_its_text_inside() -> None:
    answer = error_response(RuntimeError("a secret"))
    assert answer.status_code == 500
    error = json.loads(bytes(answer.body))["error"]
    assert error == {"message": "internal error", "type": "server_error", "param": None, "code": "internal_error"}
