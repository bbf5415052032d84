"""`prompt_logprobs` and `echo` with logprobs, in front of a fake scheduler."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from support.fake_scheduler import FakeScheduler
from support.gateway_fixtures import MODEL, sse_events

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = [70, 61, 72]
# The fake's logprob of a token is its id / -100, and its likeliest tokens are 60 (0.0), 61 (-1.0) and so on.
EXPECTED = [
    None,
    {"61": {"rank": 2, "logprob": -1.0}, "60": {"rank": 1, "logprob": 0.0}},
    {"72": {"rank": None, "logprob": -0.72}, "60": {"rank": 1, "logprob": 0.0}, "61": {"rank": 2, "logprob": -1.0}},
]


def without_text(positions: Any) -> Any:
    """The positions with rank and logprob alone; each token must have its text as well."""
    for position in positions[1:]:
        for entry in position.values():
            assert isinstance(entry.pop("decoded_token"), str)
            entry["logprob"] = pytest.approx(entry["logprob"], abs=1e-6)
    return positions


async def test_each_choice_has_those_of_its_prompt(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    body = {"model": MODEL, "prompt": [PROMPT, [70]], "n": 2, "max_tokens": 3, "prompt_logprobs": 2}
    choices = (await http.post("/v1/completions", json=body)).json()["choices"]
    assert len(choices) == 4
    for choice in choices[:2]:
        assert without_text(choice["prompt_logprobs"]) == EXPECTED
    assert [choice["prompt_logprobs"] for choice in choices[2:]] == [[None], [None]]


async def test_without_them_there_is_no_such_field(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 3}
    assert "prompt_logprobs" not in (await http.post("/v1/completions", json=body)).json()["choices"][0]
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
    assert "prompt_logprobs" not in (await http.post("/v1/chat/completions", json=chat)).json()


async def test_a_chat_has_them_at_its_top(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, "prompt_logprobs": 1}
    answer = (await http.post("/v1/chat/completions", json=body)).json()
    prompt = scheduler.requests[0].prompt_token_ids
    first, *others = answer["prompt_logprobs"]
    assert first is None
    for position, token_id in zip(others, prompt[1:], strict=True):
        assert set(position) == {str(token_id), "60"}
    assert "prompt_logprobs" not in answer["choices"][0]


async def test_a_stream_has_them_on_its_first_chunk(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 5, "prompt_logprobs": 2, "stream": True}
    *chunks, done = sse_events((await http.post("/v1/completions", json=body)).text)
    assert done == "[DONE]"
    told = [chunk["choices"][0].get("prompt_logprobs") for chunk in chunks]
    assert without_text(told[0]) == EXPECTED
    assert not any(told[1:])


async def test_an_echo_begins_with_the_prompts_logprobs(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 2, "logprobs": 1, "echo": True}
    choice = (await http.post("/v1/completions", json=body)).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == len(PROMPT) + 2
    assert choice["text"].startswith("".join(logprobs["tokens"][: len(PROMPT)]))
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert logprobs["token_logprobs"][1:3] == pytest.approx([-0.61, -0.72], abs=1e-6)
