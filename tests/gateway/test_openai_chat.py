from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from support.fake_scheduler import FakeScheduler
from support.gateway_fixtures import MODEL, Gateway, sse_events
from tokenizers import Tokenizer

pytestmark = pytest.mark.asyncio(loop_scope="module")

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
PROMPT = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(autouse=True)
def answer(scheduler: FakeScheduler, tokenizer: Tokenizer) -> str:
    """Every sequence says this and ends."""
    token_ids = tokenizer.encode("Paris 😀<|im_end|>").ids
    scheduler.script = lambda request, index: token_ids
    return "Paris 😀"


async def test_the_whole_answer(http: httpx.AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer) -> None:
    scheduler.cached_tokens = 3
    response = await http.post(
        "/v1/chat/completions", json={"model": MODEL, "messages": MESSAGES, "logprobs": True, "n": 2}
    )
    answer = response.json()
    ChatCompletion.model_validate(answer, strict=True)
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    choice = answer["choices"][1]
    assert choice["message"] == {"role": "assistant", "content": "Paris 😀", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert all(entry["top_logprobs"] == [] for entry in choice["logprobs"]["content"])
    (request,) = scheduler.requests
    assert tokenizer.decode(request.prompt_token_ids, skip_special_tokens=False) == PROMPT
    # What is left of the context.
    assert request.params.max_tokens == 256 - len(request.prompt_token_ids)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 3


async def test_the_stream(http: httpx.AsyncClient, answer: str) -> None:
    body = {"model": MODEL, "messages": MESSAGES, "n": 2, "stream": True}
    response = await http.post("/v1/chat/completions", json={**body, "stream_options": {"include_usage": True}})
    *chunks, usage, done = sse_events(response.text)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] > 0
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["usage"] is None
    for index in range(2):
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert [delta.get("role") for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
        assert "".join(delta.get("content", "") for delta in deltas) == answer
        assert deltas[0] == {"role": "assistant", "content": ""}


async def test_logprobs(http: httpx.AsyncClient, tokenizer: Tokenizer) -> None:
    body: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "logprobs": True, "top_logprobs": 2}
    whole = (await http.post("/v1/chat/completions", json=body)).json()
    ChatCompletion.model_validate(whole, strict=True)
    content = whole["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in content) == "Paris 😀<|im_end|>".encode()
    assert content[0]["token"] == tokenizer.decode(tokenizer.encode("Paris").ids[:1])
    assert content[0]["logprob"] == -0.5
    assert [entry["logprob"] for entry in content[0]["top_logprobs"]] == [-0.5, -1.5]
    response = await http.post("/v1/chat/completions", json={**body, "stream": True})
    *chunks, _ = sse_events(response.text)
    streamed = [chunk["choices"][0]["logprobs"]["content"] for chunk in chunks]
    assert [entry for part in streamed for entry in part] == content


async def test_text_parts_and_a_developer(
    http: httpx.AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer
) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    await http.post("/v1/chat/completions", json={"model": MODEL, "messages": messages})
    (request,) = scheduler.requests
    prompt = tokenizer.decode(request.prompt_token_ids, skip_special_tokens=False)
    assert prompt == PROMPT.replace("hello", "hel\nlo")


async def test_the_official_client(gateway: Gateway, answer: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="-") as client:
        whole = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "hello"}],
            max_completion_tokens=20,
            extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1},
        )
        assert whole.choices[0].message.content == answer
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hello"}], stream=True
        )
        text = ""
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
        assert text == answer
