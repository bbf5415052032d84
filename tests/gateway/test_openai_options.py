"""vLLM's extensions to OpenAI's request, on both endpoints."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from support.fake_scheduler import MAX_MODEL_LEN, FakeScheduler
from support.gateway_fixtures import MODEL, sse_events
from tokenizers import Tokenizer

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENDPOINTS = {
    "/v1/completions": {"prompt": "hello"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
}


@pytest.fixture(params=ENDPOINTS)
def path(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


async def ask(http: httpx.AsyncClient, path: str, **body: Any) -> httpx.Response:
    answer = await http.post(path, json={**ENDPOINTS[path], **body})
    assert answer.status_code == 200, answer.text
    return answer


def text_of(choice: Any) -> str:
    text: str = choice["text"] if "text" in choice else choice["message"]["content"]
    return text


async def test_a_model_need_not_be_named(http: httpx.AsyncClient, scheduler: FakeScheduler, path: str) -> None:
    assert (await ask(http, path)).json()["model"] == MODEL
    assert (await ask(http, path, model=None)).json()["model"] == MODEL


async def test_a_stop_string_stays_if_wanted(
    http: httpx.AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer, path: str
) -> None:
    scheduler.script = lambda request, index: tokenizer.encode("one two three").ids
    body = {"stop": ["o th"], "max_tokens": 50, "include_stop_str_in_output": True}
    (choice,) = (await ask(http, path, **body)).json()["choices"]
    assert (text_of(choice), choice["stop_reason"]) == ("one two th", "o th")


async def test_the_text_of_a_stop_token_stays_if_wanted(
    http: httpx.AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer, path: str
) -> None:
    end, stop = tokenizer.token_to_id("<|im_end|>"), tokenizer.encode("t").ids[0]
    scheduler.script = lambda request, index: [*tokenizer.encode("xy").ids, stop, 70]
    body = {"stop_token_ids": [stop], "include_stop_str_in_output": True, "max_tokens": 50}
    assert text_of((await ask(http, path, **body)).json()["choices"][0]) == "xyt"
    scheduler.script = lambda request, index: [*tokenizer.encode("xy").ids, end]
    body["skip_special_tokens"] = False
    assert text_of((await ask(http, path, **body)).json()["choices"][0]) == "xy<|im_end|>"


async def test_a_truncated_prompt_keeps_its_end(http: httpx.AsyncClient, scheduler: FakeScheduler, path: str) -> None:
    await ask(http, path, max_tokens=2)
    await ask(http, path, max_tokens=2, truncate_prompt_tokens=1)
    whole, cut = (request.prompt_token_ids for request in scheduler.requests)
    assert cut == whole[-1:]


@pytest.mark.parametrize("max_tokens", [6, None])
async def test_as_many_tokens_as_fit(http: httpx.AsyncClient, scheduler: FakeScheduler, max_tokens: int | None) -> None:
    ids = [60 + number % 100 for number in range(1000)]
    body = {"prompt": ids, "truncate_prompt_tokens": -1, "max_tokens": max_tokens}
    assert (await http.post("/v1/completions", json=body)).status_code == 200
    (request,) = scheduler.requests
    assert request.prompt_token_ids == ids[-(MAX_MODEL_LEN - (max_tokens or 16)) :]


async def test_a_text_far_beyond_the_context_is_cut(
    http: httpx.AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer
) -> None:
    text = "one two three " * 100_000
    body = {"prompt": text, "truncate_prompt_tokens": 5, "max_tokens": 1}
    assert (await http.post("/v1/completions", json=body)).status_code == 200
    (request,) = scheduler.requests
    assert request.prompt_token_ids == tokenizer.encode("one two three one two three ").ids[-5:]


async def test_token_ids(http: httpx.AsyncClient, scheduler: FakeScheduler, path: str) -> None:
    scheduler.script = lambda request, index: [70, 71, 72]
    body = {"max_tokens": 3, "return_token_ids": True}
    (choice,) = (await ask(http, path, **body)).json()["choices"]
    assert choice["token_ids"] == [70, 71, 72]
    *chunks, _ = sse_events((await ask(http, path, **body, stream=True)).text)
    assert [token for chunk in chunks for token in chunk["choices"][0]["token_ids"]] == [70, 71, 72]
    assert "token_ids" not in (await ask(http, path, max_tokens=3)).json()["choices"][0]


async def test_tokens_named_by_their_ids(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    scheduler.script = lambda request, index: [70, 71]
    body = {"max_tokens": 2, "return_tokens_as_token_ids": True}
    (choice,) = (await ask(http, "/v1/completions", **body, logprobs=1)).json()["choices"]
    assert choice["logprobs"]["tokens"] == ["token_id:70", "token_id:71"]
    assert choice["logprobs"]["top_logprobs"][0] == {"token_id:70": -0.5}
    chat = await ask(http, "/v1/chat/completions", **body, logprobs=True, top_logprobs=1)
    first = chat.json()["choices"][0]["logprobs"]["content"][0]
    assert (first["token"], first["top_logprobs"][0]["token"]) == ("token_id:70", "token_id:70")


async def test_the_tokenizers_own_tokens(
    http: httpx.AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer, path: str
) -> None:
    for adds in (None, True, False):
        await ask(http, path, max_tokens=1, add_special_tokens=adds)
    by_default, added, left_out = (request.prompt_token_ids for request in scheduler.requests)
    assert by_default == (added if path == "/v1/completions" else left_out)


async def test_priority_and_salt_reach_the_scheduler(
    http: httpx.AsyncClient, scheduler: FakeScheduler, path: str
) -> None:
    await ask(http, path, priority=-3, cache_salt="pepper")
    (request,) = scheduler.requests
    assert (request.message.priority, request.message.cache_salt) == (-3, b"pepper")


async def test_usage_in_every_chunk(http: httpx.AsyncClient, scheduler: FakeScheduler, path: str) -> None:
    scheduler.script = lambda request, index: [70, 71, 72]
    options = {"include_usage": True, "continuous_usage_stats": True}
    answer = await ask(http, path, max_tokens=3, stream=True, stream_options=options)
    *chunks, last, _ = sse_events(answer.text)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == last["usage"]["completion_tokens"] == 3
    prompt_tokens = {chunk["usage"]["prompt_tokens"] for chunk in [*chunks, last]}
    assert prompt_tokens == {len(scheduler.requests[0].prompt_token_ids)}
    assert last["choices"] == []


async def test_stream_options_need_a_stream(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.post(path, json={**ENDPOINTS[path], "stream_options": {"include_usage": True}})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "stream_options"


async def test_fields_that_may_be_null_are_there(http: httpx.AsyncClient, scheduler: FakeScheduler, path: str) -> None:
    whole = (await ask(http, path, max_tokens=2)).json()
    *chunks, _ = sse_events((await ask(http, path, max_tokens=2, stream=True)).text)
    for answer in [whole, *chunks]:
        assert answer["system_fingerprint"] == whole["system_fingerprint"]
        assert answer["system_fingerprint"].startswith("fp_")
        assert {"logprobs", "finish_reason"} <= set(answer["choices"][0])
        assert answer.get("service_tier") == (None if path == "/v1/completions" else "default")
