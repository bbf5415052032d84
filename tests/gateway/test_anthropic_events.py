"""How a turn is written as a message: whole, and as events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from support.fake_chat import WHOLE_TURN, FakeRun, body_of, calls, ends, named_events, says, thinks

from quire.errors import (
    AuthenticationError,
    BodyTooLargeError,
    ContextLengthError,
    DeadlineError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    QuireError,
    ServiceUnavailableError,
)
from quire.gateway.anthropic.errors import answer_error
from quire.gateway.anthropic.events import MessageWriter
from quire.gateway.chat.deltas import ChatDelta
from quire.gateway.chat.turn_answer import answer_turn

SCOPE = {"state": {"request_id": "req_1"}}


async def whole(deltas: Sequence[ChatDelta]) -> dict[str, Any]:
    response = await answer_turn(FakeRun(deltas), MessageWriter("1f", "tiny", 10), stream=False)
    body: dict[str, Any] = json.loads(bytes(response.body))
    return body


async def streamed(deltas: Sequence[ChatDelta], error: Exception | None = None) -> list[dict[str, Any]]:
    run = FakeRun(deltas, error)
    events = named_events(await body_of(await answer_turn(run, MessageWriter("1f", "tiny", 10), stream=True)))
    assert run.num_closed == 1
    return events


async def test_the_whole_message() -> None:
    assert await whole(WHOLE_TURN) == {
        "type": "message",
        "id": "msg_1f",
        "role": "assistant",
        "model": "tiny",
        "content": [
            {"type": "thinking", "thinking": "Let me see.", "signature": ""},
            {"type": "text", "text": "I will look."},
            {"type": "tool_use", "id": "call_a", "name": "look", "input": {"where": "Paris"}},
            {"type": "tool_use", "id": "call_b", "name": "listen", "input": {}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 6,
            "output_tokens": 7,
            "cache_read_input_tokens": 4,
            "cache_creation_input_tokens": 0,
            "output_tokens_details": {"thinking_tokens": 2},
        },
    }


async def test_the_events() -> None:
    start, ping, *blocks, delta, stop = await streamed(WHOLE_TURN)
    assert start["message"]["content"] == []
    assert start["message"]["stop_reason"] is None
    assert start["message"]["usage"]["input_tokens"] == 10
    assert ping == {"type": "ping"}
    assert [(event["type"].removeprefix("content_block_"), event["index"]) for event in blocks] == [
        *[("start", 0), ("delta", 0), ("delta", 0), ("stop", 0)],
        *[("start", 1), ("delta", 1), ("delta", 1), ("stop", 1)],
        *[("start", 2), ("delta", 2), ("delta", 2), ("stop", 2)],
        *[("start", 3), ("delta", 3), ("stop", 3)],
    ]
    assert [event["content_block"] for event in blocks if event["type"] == "content_block_start"] == [
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "text", "text": ""},
        {"type": "tool_use", "id": "call_a", "name": "look", "input": {}},
        {"type": "tool_use", "id": "call_b", "name": "listen", "input": {}},
    ]
    assert [event["delta"] for event in blocks if event["type"] == "content_block_delta"] == [
        {"type": "thinking_delta", "thinking": "Let me "},
        {"type": "thinking_delta", "thinking": "see."},
        {"type": "text_delta", "text": "I will "},
        {"type": "text_delta", "text": "look."},
        {"type": "input_json_delta", "partial_json": '{"where": '},
        {"type": "input_json_delta", "partial_json": '"Paris"}'},
        {"type": "input_json_delta", "partial_json": "{}"},
    ]
    message = await whole(WHOLE_TURN)
    assert delta["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert delta["usage"] == message["usage"]
    assert stop == {"type": "message_stop"}


@pytest.mark.parametrize(
    ("last", "wanted"),
    [
        (ends("stop"), ("end_turn", None)),
        (ends("stop", 7), ("end_turn", None)),
        (ends("stop", "END"), ("stop_sequence", "END")),
        (ends("length"), ("max_tokens", None)),
    ],
)
async def test_why_it_stopped(last: ChatDelta, wanted: tuple[str, str | None]) -> None:
    message = await whole([says("a"), last])
    assert (message["stop_reason"], message["stop_sequence"]) == wanted
    *_, delta, _ = await streamed([says("a"), last])
    assert (delta["delta"]["stop_reason"], delta["delta"]["stop_sequence"]) == wanted


@pytest.mark.parametrize("arguments", ['{"where": "Pa', "[1]", ""])
async def test_arguments_that_are_no_object_are_empty(arguments: str) -> None:
    message = await whole([thinks("hm"), calls(0, arguments, "c", "look"), ends("length")])
    assert message["content"][1]["input"] == {}
    assert message["stop_reason"] == "max_tokens"


async def test_a_failure_after_the_first_byte() -> None:
    *_, error = await streamed([says("a")], ServiceUnavailableError("gone"))
    detail = {"type": "overloaded_error", "message": "gone"}
    assert error == {"type": "error", "error": detail, "request_id": "1f"}


async def test_an_abort_by_the_server_is_an_error() -> None:
    *_, error = await streamed([says("a"), ends("abort")])
    assert error["error"]["type"] == "api_error"


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequestError("no"), 400, "invalid_request_error"),
        (ContextLengthError("long"), 400, "invalid_request_error"),
        (ModelNotFoundError("no such model"), 404, "not_found_error"),
        (AuthenticationError("no key"), 401, "authentication_error"),
        (BodyTooLargeError("large"), 413, "request_too_large"),
        (OverloadedError("many"), 429, "rate_limit_error"),
        (DeadlineError("late"), 504, "timeout_error"),
        (ServiceUnavailableError("gone"), 529, "overloaded_error"),
        (QuireError("broken"), 500, "api_error"),
    ],
)
def test_errors(error: QuireError, status: int, kind: str) -> None:
    response = answer_error(error, SCOPE)
    assert response.status_code == status
    body = {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": "req_1"}
    assert json.loads(bytes(response.body)) == body
    assert response.headers["request-id"] == "req_1"
    assert response.headers.get("retry-after") == (None if error.retry_after is None else str(error.retry_after))


def test_a_defect_keeps_its_text_inside() -> None:
    response = answer_error(RuntimeError("secret"), SCOPE)
    assert response.status_code == 500
    assert json.loads(bytes(response.body))["error"] == {"type": "api_error", "message": "internal error"}


def test_the_field_is_in_the_message() -> None:
    body = json.loads(bytes(answer_error(InvalidRequestError("must be less", field="top_k"), SCOPE).body))
    assert body["error"]["message"] == "top_k: must be less"
