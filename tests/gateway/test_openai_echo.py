"""What answers tell of the prompt: echo, prompt_logprobs and prompt_token_ids."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai.types import Completion
from support.fake_scheduler import FakeScheduler
from support.gateway_fixtures import MODEL, sse_events
from tokenizers import Tokenizer

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = "one two"


@pytest.fixture
def answering(scheduler: FakeScheduler, tokenizer: Tokenizer) -> FakeScheduler:
    """Sequence i answers with " Paris" or " x"."""
    texts = [" Paris", " x"]
    scheduler.script = lambda request, index: tokenizer.encode(texts[index], add_special_tokens=False).ids
    return scheduler


async def complete(http: httpx.AsyncClient, **body: Any) -> Any:
    answer = await http.post("/v1/completions", json={"model": MODEL, "prompt": PROMPT, "echo": True, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def stream(http: httpx.AsyncClient, **body: Any) -> list[Any]:
    body = {"model": MODEL, "prompt": PROMPT, "echo": True, "stream": True, **body}
    *chunks, done = sse_events((await http.post("/v1/completions", json=body)).text)
    assert done == "[DONE]"
    return chunks


async def test_the_prompt_comes_first(http: httpx.AsyncClient, answering: FakeScheduler, tokenizer: Tokenizer) -> None:
    length = len(tokenizer.encode(" Paris").ids)
    body = {"prompt": [PROMPT, "hello"], "max_tokens": length}
    whole = await complete(http, **body)
    assert [choice["text"] for choice in whole["choices"]] == [f"{PROMPT} Paris", "hello Paris"]
    texts = ["", ""]
    for chunk in await stream(http, **body):
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == [f"{PROMPT} Paris", "hello Paris"]


async def test_a_prompt_of_token_ids_is_decoded(
    http: httpx.AsyncClient, answering: FakeScheduler, tokenizer: Tokenizer
) -> None:
    (choice,) = (await complete(http, prompt=tokenizer.encode(PROMPT).ids, max_tokens=1))["choices"]
    assert choice["text"].startswith(PROMPT + " ")


async def test_of_a_cut_prompt_what_was_kept(
    http: httpx.AsyncClient, answering: FakeScheduler, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode(PROMPT).ids
    (choice,) = (await complete(http, truncate_prompt_tokens=2, max_tokens=0))["choices"]
    assert choice["text"] == tokenizer.decode(ids[-2:])


@pytest.mark.parametrize("streamed", [False, True])
async def test_logprobs_of_prompt_and_output(
    http: httpx.AsyncClient, answering: FakeScheduler, tokenizer: Tokenizer, streamed: bool
) -> None:
    ids = tokenizer.encode(PROMPT).ids
    body = {"logprobs": 1, "max_tokens": 1, "n": 2}
    answers = await stream(http, **body) if streamed else [await complete(http, **body)]
    for index in range(2):
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        text = ""
        for choice in (choice for answer in answers for choice in answer["choices"] if choice["index"] == index):
            text += choice["text"]
            for name, entries in found.items():
                entries.extend(choice["logprobs"][name])
        assert "".join(found["tokens"]) == text
        assert found["token_logprobs"] == [None, *(pytest.approx(-token / 100) for token in ids[1:]), -0.5]
        assert found["top_logprobs"][0] is None
        assert found["tokens"][1] in found["top_logprobs"][1]
        assert found["text_offset"] == [len("".join(found["tokens"][:count])) for count in range(len(ids) + 1)]


@pytest.mark.parametrize("streamed", [False, True])
async def test_with_max_tokens_0_only_the_prompt(
    http: httpx.AsyncClient, answering: FakeScheduler, tokenizer: Tokenizer, streamed: bool
) -> None:
    ids = tokenizer.encode(PROMPT).ids
    body = {"max_tokens": 0, "logprobs": 0, "return_token_ids": True}
    if streamed:
        *_, last = chunks = await stream(http, **body, stream_options={"include_usage": True})
        (choice,) = chunks[0]["choices"]
        assert len(chunks) == 2
        usage = last["usage"]
    else:
        answer = await complete(http, **body)
        (choice,), usage = answer["choices"], answer["usage"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (PROMPT, "length", None)
    assert len(choice["logprobs"]["tokens"]) == len(ids)
    assert (choice["token_ids"], choice["prompt_token_ids"]) == ([], ids)
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (len(ids), 0, len(ids))


async def test_max_tokens_may_be_0_only_with_echo(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/completions", json={"prompt": "x", "max_tokens": 0})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "max_tokens"


@pytest.mark.parametrize("streamed", [False, True])
async def test_prompt_logprobs(
    http: httpx.AsyncClient, answering: FakeScheduler, tokenizer: Tokenizer, streamed: bool
) -> None:
    ids = tokenizer.encode(PROMPT).ids
    body = {"prompt_logprobs": 1, "max_tokens": 2, "echo": False, "return_tokens_as_token_ids": True}
    choices = [chunk["choices"][0] for chunk in await stream(http, **body)] if streamed else []
    first, *others = choices or (await complete(http, **body))["choices"]
    assert first["text"] in " Paris"
    assert all("prompt_logprobs" not in choice for choice in others)
    nothing, *positions = first["prompt_logprobs"]
    assert nothing is None
    for token_id, position in zip(ids[1:], positions, strict=True):
        own, top = position[str(token_id)], position["60"]
        assert own["logprob"] == pytest.approx(-token_id / 100)
        assert own["decoded_token"] == f"token_id:{token_id}"
        assert (top["logprob"], top["rank"]) == (0, 1)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_chat_tells_of_its_prompt_once(
    http: httpx.AsyncClient, answering: FakeScheduler, streamed: bool
) -> None:
    body = {
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 2,
        "prompt_logprobs": 0,
        "return_token_ids": True,
        "stream": streamed,
    }
    answer = await http.post("/v1/chat/completions", json=body)
    first, *others = sse_events(answer.text)[:-1] if streamed else [answer.json()]
    (request,) = answering.requests
    assert first["prompt_token_ids"] == request.prompt_token_ids
    assert len(first["prompt_logprobs"]) == len(request.prompt_token_ids)
    assert all("prompt_token_ids" not in chunk and "prompt_logprobs" not in chunk for chunk in others)
    token_ids = [token for chunk in [first, *others] for token in chunk["choices"][0]["token_ids"]]
    assert token_ids == answering.script(request.message, 0)[:2]


async def test_the_answer_keeps_openais_shape(http: httpx.AsyncClient, answering: FakeScheduler) -> None:
    answer = await complete(http, max_tokens=1, logprobs=1)
    # OpenAI's client names the type of logprobs without the null that its own server sends first.
    answer["choices"][0]["logprobs"]["token_logprobs"][0] = 0.0
    answer["choices"][0]["logprobs"]["top_logprobs"][0] = {}
    Completion.model_validate(answer, strict=True)
