"""POST /v1/responses of a gateway, with a scheduler that says what the test wants."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response
from support.fake_chat import named_events
from support.fake_scheduler import MAX_MODEL_LEN, FakeScheduler
from support.gateway_fixtures import MODEL, Gateway
from tokenizers import Tokenizer

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(autouse=True)
def answer(scheduler: FakeScheduler, tokenizer: Tokenizer) -> str:
    """Every sequence says this and ends."""
    token_ids = tokenizer.encode("Paris 😀<|im_end|>").ids
    scheduler.script = lambda request, index: token_ids
    return "Paris 😀"


async def post(http: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await http.post("/v1/responses", json={"model": MODEL, "input": "hello", **fields})


def prompt_of(scheduler: FakeScheduler, tokenizer: Tokenizer) -> str:
    (request,) = scheduler.requests
    text: str = tokenizer.decode(request.prompt_token_ids, skip_special_tokens=False)
    return text


async def test_the_whole_response(
    http: httpx.AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer, answer: str
) -> None:
    scheduler.cached_tokens = 3
    response = (await post(http, instructions="Be brief.", priority=-1, cache_salt="s", top_k=7)).json()
    Response.model_validate(response, strict=True)
    assert response["output"][0]["content"][0]["text"] == answer
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == 3
    assert prompt_of(scheduler, tokenizer) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    )
    (request,) = scheduler.requests
    assert (request.message.priority, request.message.cache_salt, request.params.top_k) == (-1, b"s", 7)
    # The checkpoint's own.
    assert response["temperature"] == 0.75


async def test_the_stream(http: httpx.AsyncClient, answer: str) -> None:
    response = await post(http, stream=True, include=["message.output_text.logprobs"], top_logprobs=2)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = named_events(response.text)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(event["delta"] for event in deltas) == answer
    entries = [entry for event in deltas for entry in event["logprobs"]]
    assert b"".join(bytes(entry["bytes"]) for entry in entries) == answer.encode()
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)
    assert events[-1]["type"] == "response.completed"


async def test_max_output_tokens(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    scheduler.script = lambda request, index: [70] * MAX_MODEL_LEN
    response = (await post(http, max_output_tokens=3)).json()
    assert (response["status"], response["usage"]["output_tokens"]) == ("incomplete", 3)


TOOL = {"type": "function", "name": "look"}
BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "gpt-none"}, 404, "model"),
    ({"input": []}, 400, "input"),
    ({"no_such_field": 1}, 400, "no_such_field"),
    ({"previous_response_id": "resp_1"}, 400, "previous_response_id"),
    ({"input": "hello " * 1000}, 400, "input"),
    ({"input": [{"role": "assistant", "content": "The template refuses this."}]}, 400, "input"),
    ({"max_output_tokens": MAX_MODEL_LEN}, 400, "input"),
    ({"tool_choice": "required"}, 400, "tool_choice"),
    ({"tool_choice": {"type": "function", "name": "look"}}, 400, "tool_choice"),
    ({"tools": [{**TOOL, "name": "not a name"}]}, 400, "tools[0].name"),
    ({"tools": [TOOL, TOOL]}, 400, "tools[1].name"),
    ({"tools": [{**TOOL, "parameters": {"type": "string"}}]}, 400, "tools[0].parameters"),
    ({"reasoning": {"effort": "low"}}, 400, "reasoning.effort"),
    ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"$ref": "x"}}}}, 400, "text.format"),
    ({"include": ["message.output_text.logprobs"], "top_logprobs": 1000}, 400, "top_logprobs"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "status", "param"), BAD, ids=lambda value: str(value)[:40])
async def test_bad_requests_are_refused_before_the_200(
    http: httpx.AsyncClient, scheduler: FakeScheduler, fields: dict[str, Any], status: int, param: str, stream: bool
) -> None:
    response = await post(http, **fields, stream=stream)
    assert response.status_code == status, response.text
    assert response.json()["error"]["param"] == param
    assert scheduler.requests == []


async def test_no_response_is_kept(http: httpx.AsyncClient) -> None:
    made = (await post(http, store=True)).json()
    assert made["store"] is False
    assert (await http.get(f"/v1/responses/{made['id']}")).status_code == 404
    assert (await http.delete(f"/v1/responses/{made['id']}")).status_code == 404


async def test_the_api_is_described(http: httpx.AsyncClient) -> None:
    description = (await http.get("/openapi.json")).json()
    body = description["paths"]["/v1/responses"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/ResponsesRequest"}
    schema = description["components"]["schemas"]["ResponsesRequest"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["background"]["enum"] == [None, False]


async def test_the_official_client(gateway: Gateway, answer: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="-", max_retries=0) as client:
        whole = await client.responses.create(model=MODEL, input="hello")
        assert whole.output_text == answer
        turns: Any = [{"role": "user", "content": "hello"}, *whole.output, {"role": "user", "content": "and?"}]
        assert (await client.responses.create(model=MODEL, input=turns)).output_text == answer
        async with client.responses.stream(model=MODEL, input="hello") as stream:
            text = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
            final = await stream.get_final_response()
        assert text == final.output_text == answer
        with pytest.raises(openai.BadRequestError, match="this server keeps none"):
            await client.responses.create(model=MODEL, input="hello", previous_response_id=whole.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(whole.id)


def turns(number: int) -> list[dict[str, str]]:
    """So many turns, of about ten tokens each, after a word of the developer's."""
    chat = [{"role": "developer", "content": "Be brief."}]
    for turn in range(number):
        chat += [{"role": "user", "content": f"u{turn}"}, {"role": "assistant", "content": f"a{turn}"}]
    return [*chat, {"role": "user", "content": "last"}]


async def test_truncation_drops_the_oldest_turns(
    http: httpx.AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer
) -> None:
    refused = await post(http, input=turns(100), max_output_tokens=5)
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    response = await post(http, input=turns(100), max_output_tokens=5, truncation="auto")
    assert response.json()["truncation"] == "auto"
    prompt = prompt_of(scheduler, tokenizer)
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nu")
    assert prompt.endswith(
        "u99<|im_end|>\n<|im_start|>assistant\na99<|im_end|>\n<|im_start|>user\nlast<|im_end|>\n<|im_start|>assistant\n"
    )
    # One turn more would not have fit.
    (request,) = scheduler.requests
    turn = len(tokenizer.encode("<|im_start|>user\nu99<|im_end|>\n<|im_start|>assistant\na99<|im_end|>\n").ids)
    assert MAX_MODEL_LEN - 5 - turn < len(request.prompt_token_ids) <= MAX_MODEL_LEN - 5


async def test_truncation_leaves_what_fits(
    http: httpx.AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer
) -> None:
    await post(http, input=turns(1), truncation="auto")
    assert "u0" in prompt_of(scheduler, tokenizer)


async def test_truncation_cannot_shorten_the_last_turn(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    for given in ("hello " * 1000, [*turns(3), {"role": "user", "content": "hello " * 1000}]):
        response = await post(http, input=given, truncation="auto")
        assert response.json()["error"]["code"] == "context_length_exceeded"
    assert scheduler.requests == []
