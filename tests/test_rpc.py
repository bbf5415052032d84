"""Errors survive the way through a gRPC status."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from quire.errors import QuireError, all_errors
from quire.rpc import errors_from_status, from_rpc_error, to_status


class FailedCall(grpc.RpcError):
    """What grpc raises, with the status it would have."""

    def __init__(self, code: grpc.StatusCode, details: str, metadata: tuple[Any, ...] = ()) -> None:
        super().__init__()
        self._parts = code, details, metadata

    def code(self):
        return self._parts[0]

    def details(self):
        return self._parts[1]

    def trailing_metadata(self):
        return self._parts[2]


def _failed(error: QuireError) -> FailedCall:
    status = rpc_status.to_status(to_status(error))
    return FailedCall(status.code, status.details, status.trailing_metadata)


@pytest.mark.parametrize("cls", all_errors())
def test_there_and_back(cls):
    back = from_rpc_error(_failed(cls("went wrong", field="some_field", retry_after=7)))
    assert back.code == cls.code
    assert (back.message, back.field, back.retry_after) == ("went wrong", "some_field", 7)
    assert back.http_status == cls.http_status


def test_the_code_of_an_error_is_the_tables():
    for cls in all_errors():
        assert _failed(cls("x")).code().name == cls.grpc_code


def test_a_status_without_details_gives_the_general_class():
    error = from_rpc_error(FailedCall(grpc.StatusCode.UNAVAILABLE, "connection refused"))
    assert (error.code, error.message) == ("service_unavailable", "connection refused")
    assert type(from_rpc_error(FailedCall(grpc.StatusCode.UNKNOWN, ""))) is QuireError


def test_an_unreachable_peer_is_named():
    refused = FailedCall(grpc.StatusCode.UNAVAILABLE, "refused")
    with (
        pytest.raises(QuireError, match="the scheduler cannot be reached: refused"),
        errors_from_status("the scheduler"),
    ):
        raise refused
