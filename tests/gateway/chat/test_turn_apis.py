"""Thoughts and calls of /v1/responses and /v1/messages, by a gateway whose scheduler says what the test wants."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from openai.types.responses import Response
from support import chat_tokenizer
from support.fake_chat import named_events
from support.fake_scheduler import FakeScheduler, Together
from support.gateway_fixtures import MODEL, Gateway, start_gateway
from tokenizers import Tokenizer

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Short, since the fake scheduler's context is.
SCHEMA = {"type": "object"}
CALL = '<tool_call>\n{"name": "look", "arguments": {"a": 1}}\n</tool_call>'
TURN = f"<think>\none two\n</think>\n\nhello{CALL}<|im_end|>"
RESPONSES: dict[str, Any] = {
    "model": MODEL,
    "input": "hello",
    "tools": [{"type": "function", "name": "look", "parameters": SCHEMA}],
}
MESSAGES: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 70,
    "messages": [{"role": "user", "content": "hello"}],
    "tools": [{"name": "look", "input_schema": SCHEMA}],
}


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat-model")
    chat_tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def chat_tokens(chat_model: Path) -> Tokenizer:
    return Tokenizer.from_file(str(chat_model / "tokenizer.json"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chat_gateway(module_scheduler: FakeScheduler, chat_model: Path) -> AsyncIterator[Gateway]:
    gateway = await start_gateway(module_scheduler, chat_model)
    yield gateway
    await gateway.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chat_http(chat_gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=chat_gateway.url, timeout=60) as client:
        yield client


Say = Callable[[str], None]


@pytest.fixture(params=["one by one", "together"])
def say(request: pytest.FixtureRequest, scheduler: FakeScheduler, chat_tokens: Tokenizer) -> Say:
    """Makes every sequence say a text, token by token or in one message."""

    def set_script(text: str) -> None:
        token_ids: list[int] = chat_tokens.encode(text).ids
        script = token_ids if request.param == "one by one" else [Together(token_ids)]
        scheduler.script = lambda _, index: script

    return set_script


async def test_a_response(chat_http: httpx.AsyncClient, say: Say) -> None:
    say(TURN)
    response = (await chat_http.post("/v1/responses", json=RESPONSES)).json()
    Response.model_validate(response, strict=True)
    thought, said, call = response["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "one two"}]
    assert said["content"][0]["text"] == "hello"
    assert (call["name"], json.loads(call["arguments"])) == ("look", {"a": 1})
    assert response["status"] == "completed"
    events = named_events((await chat_http.post("/v1/responses", json={**RESPONSES, "stream": True})).text)
    texts = ["", "", ""]
    for event in events:
        if event["type"].endswith(".delta"):
            texts[event["output_index"]] += event["delta"]
    assert texts == ["one two", "hello", call["arguments"]]
    ended = [event["item"]["type"] for event in events if event["type"] == "response.output_item.done"]
    assert ended == ["reasoning", "message", "function_call"]


async def test_the_tokens_of_thoughts(chat_http: httpx.AsyncClient, say: Say, scheduler: FakeScheduler) -> None:
    say("<think>\none two")
    response = (await chat_http.post("/v1/responses", json={**RESPONSES, "max_output_tokens": 4})).json()
    assert response["status"] == "incomplete"
    usage = response["usage"]
    assert usage["output_tokens_details"]["reasoning_tokens"] == usage["output_tokens"] == 4
    message = (await chat_http.post("/v1/messages", json={**MESSAGES, "max_tokens": 4})).json()
    assert message["usage"]["output_tokens_details"] == {"thinking_tokens": 4}


async def test_a_response_goes_back_as_input(
    chat_http: httpx.AsyncClient, say: Say, scheduler: FakeScheduler, chat_tokens: Tokenizer
) -> None:
    say(TURN)
    response = (await chat_http.post("/v1/responses", json=RESPONSES)).json()
    result = {"type": "function_call_output", "call_id": response["output"][-1]["call_id"], "output": "sunny"}
    given = [{"role": "user", "content": "hello"}, *response["output"], result]
    assert (await chat_http.post("/v1/responses", json={**RESPONSES, "input": given})).status_code == 200
    prompt = chat_tokens.decode(scheduler.requests[-1].prompt_token_ids, skip_special_tokens=False)
    assert f"<|im_start|>assistant\nhello{CALL}<|im_end|>\n<|im_start|>tool\nsunny<|im_end|>\n" in prompt
    assert "look" in prompt.partition("<|im_end|>")[0]


async def test_a_message(chat_http: httpx.AsyncClient, say: Say) -> None:
    say(TURN)
    message = (await chat_http.post("/v1/messages", json=MESSAGES)).json()
    thought, said, use = message["content"]
    assert (thought["thinking"], said["text"]) == ("one two", "hello")
    assert (use["name"], use["input"]) == ("look", {"a": 1})
    assert message["stop_reason"] == "tool_use"
    events = named_events((await chat_http.post("/v1/messages", json={**MESSAGES, "stream": True})).text)
    texts = ["", "", ""]
    for event in events:
        if event["type"] == "content_block_delta":
            _, new = event["delta"].values()
            texts[event["index"]] += new
    assert [*texts[:2], json.loads(texts[2])] == ["one two", "hello", {"a": 1}]


async def test_a_message_goes_back_as_input(
    chat_http: httpx.AsyncClient, say: Say, scheduler: FakeScheduler, chat_tokens: Tokenizer
) -> None:
    say(TURN)
    message = (await chat_http.post("/v1/messages", json=MESSAGES)).json()
    result = {"type": "tool_result", "tool_use_id": message["content"][-1]["id"], "content": "sunny"}
    said = {"role": "assistant", "content": message["content"]}
    messages = [*MESSAGES["messages"], said, {"role": "user", "content": [result]}]
    assert (await chat_http.post("/v1/messages", json={**MESSAGES, "messages": messages})).status_code == 200
    prompt = chat_tokens.decode(scheduler.requests[-1].prompt_token_ids, skip_special_tokens=False)
    assert f"<|im_start|>assistant\nhello{CALL}<|im_end|>\n<|im_start|>tool\nsunny<|im_end|>\n" in prompt


async def test_thinking_is_for_the_client_to_ask(
    chat_http: httpx.AsyncClient, say: Say, scheduler: FakeScheduler, chat_tokens: Tokenizer
) -> None:
    say("hm</think>hello<|im_end|>")
    asked = {"reasoning": {"effort": "low", "summary": "auto"}}
    response = (await chat_http.post("/v1/responses", json={**RESPONSES, **asked})).json()
    assert response["output"][0]["content"][0]["text"] == "hm"
    assert response["reasoning"] == {"effort": "low", "summary": "auto"}
    asked = {"max_tokens": 70, "thinking": {"type": "adaptive"}}
    message = (await chat_http.post("/v1/messages", json={**MESSAGES, **asked})).json()
    assert [block["type"] for block in message["content"]] == ["thinking", "text"]
    for request in scheduler.requests:
        prompt = chat_tokens.decode(request.prompt_token_ids, skip_special_tokens=False)
        assert prompt.endswith("<|im_start|>assistant\n<think>\n")
