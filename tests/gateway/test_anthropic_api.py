"""POST /v1/messages of a gateway, with a scheduler that says what the test wants."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from support.fake_chat import named_events
from support.fake_scheduler import MAX_MODEL_LEN, FakeScheduler
from support.gateway_fixtures import MODEL
from tokenizers import Tokenizer

from quire.errors import ServiceUnavailableError

pytestmark = pytest.mark.asyncio(loop_scope="module")

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(autouse=True)
def answer(scheduler: FakeScheduler, tokenizer: Tokenizer) -> str:
    """Every sequence says this and ends."""
    token_ids = tokenizer.encode("Paris 😀<|im_end|>").ids
    scheduler.script = lambda request, index: token_ids
    return "Paris 😀"


async def post(http: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "max_tokens": 20, "messages": MESSAGES, **fields}
    return await http.post("/v1/messages", json=body, headers={"anthropic-version": "2023-06-01"})


async def test_the_whole_message(
    http: httpx.AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer, answer: str
) -> None:
    scheduler.cached_tokens = 3
    message = (await post(http, system="Be brief.", top_k=7)).json()
    assert message["content"] == [{"type": "text", "text": answer}]
    assert (message["stop_reason"], message["model"]) == ("end_turn", MODEL)
    (request,) = scheduler.requests
    prompt = tokenizer.decode(request.prompt_token_ids, skip_special_tokens=False)
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (request.params.max_tokens, request.params.top_k) == (20, 7)
    usage = message["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == len(request.prompt_token_ids)
    assert usage["cache_read_input_tokens"] == 3


async def test_the_stream(http: httpx.AsyncClient, answer: str) -> None:
    response = await post(http, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = named_events(response.text)
    deltas = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(deltas) == answer
    assert [events[0]["type"], events[-1]["type"]] == ["message_start", "message_stop"]


async def test_stop_sequences(http: httpx.AsyncClient) -> None:
    message = (await post(http, stop_sequences=["ris"])).json()
    assert message["content"] == [{"type": "text", "text": "Pa"}]
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "ris")


async def test_counting_is_what_the_prompt_has(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    body = {"model": MODEL, "messages": MESSAGES, "system": "Be brief."}
    count = (await http.post("/v1/messages/count_tokens", json=body)).json()
    assert scheduler.requests == []
    usage = (await post(http, system="Be brief.")).json()["usage"]
    assert count == {"input_tokens": usage["input_tokens"]}


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "claude-none"}, 404, "not_found_error"),
    ({"messages": []}, 400, "invalid_request_error"),
    ({"no_such_field": 1}, 400, "invalid_request_error"),
    ({"tool_choice": {"type": "any"}}, 400, "invalid_request_error"),
    ({"tools": [{"name": "look", "input_schema": {"type": "string"}}]}, 400, "invalid_request_error"),
    ({"output_config": {"effort": "low"}}, 400, "invalid_request_error"),
    ({"max_tokens": None}, 400, "invalid_request_error"),
    ({"max_tokens": MAX_MODEL_LEN}, 400, "invalid_request_error"),
    ({"messages": [{"role": "user", "content": "hello " * 1000}]}, 400, "invalid_request_error"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "status", "kind"), BAD, ids=lambda value: str(value)[:40])
async def test_bad_requests_are_refused_before_the_200(
    http: httpx.AsyncClient, scheduler: FakeScheduler, fields: dict[str, Any], status: int, kind: str, stream: bool
) -> None:
    response = await post(http, **fields, stream=stream)
    assert response.status_code == status
    error = response.json()
    assert set(error) == {"type", "error", "request_id"}
    assert (error["type"], error["error"]["type"]) == ("error", kind)
    assert error["error"]["message"]
    assert scheduler.requests == []


async def test_errors_speak_of_the_request_s_own_fields(http: httpx.AsyncClient) -> None:
    tool = {"name": "look", "input_schema": {"type": "string"}}
    response = await post(http, tools=[tool])
    assert response.json()["error"]["message"].startswith("tools[0].input_schema must be")
    body = {"model": MODEL, "messages": MESSAGES, "tools": [tool]}
    counted = await http.post("/v1/messages/count_tokens", json=body)
    assert counted.json()["error"] == response.json()["error"]


async def test_the_request_id(http: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "max_tokens": 20, "messages": MESSAGES}
    response = await http.post("/v1/messages", json=body, headers={"x-request-id": "mine"})
    assert response.headers["request-id"] == response.headers["x-request-id"] == "mine"
    assert response.json()["id"] == "msg_mine"
    response = await http.post("/v1/messages", json={**body, "max_tokens": 0}, headers={"x-request-id": "mine"})
    assert response.headers["request-id"] == response.json()["request_id"] == "mine"


async def test_bad_json(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/messages/count_tokens", content=b"{not json")
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_the_scheduler_refuses(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    scheduler.submit_error = ServiceUnavailableError("too much to do")
    response = await post(http, stream=True)
    assert response.status_code == 529
    assert response.json()["error"] == {"type": "overloaded_error", "message": "too much to do"}


async def test_the_api_is_described(http: httpx.AsyncClient) -> None:
    description = (await http.get("/openapi.json")).json()
    for path, name in (("/v1/messages", "MessagesRequest"), ("/v1/messages/count_tokens", "CountTokensRequest")):
        body = description["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body == {"$ref": f"#/components/schemas/{name}"}
        assert name in description["components"]["schemas"]
