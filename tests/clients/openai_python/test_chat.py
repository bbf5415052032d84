"""/v1/chat/completions through the official client: text, streams, logprobs."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from live_server import MODEL, LiveServer
from openai.types.chat import ChatCompletion

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]

END = "<|im_end|>"


def _ask(client: openai.OpenAI, messages: list[Any] = QUESTION, **params: Any) -> ChatCompletion:
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, **{"max_completion_tokens": 40, "temperature": 0, **params}
    )
    assert isinstance(answer, ChatCompletion)
    return answer


def test_an_answer_has_every_field(client: openai.OpenAI) -> None:
    answer = _ask(client)
    assert (answer.object, answer.model) == ("chat.completion", MODEL)
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == "The capital of France is Paris."
    assert choice.message.refusal is None
    assert not choice.message.tool_calls
    assert (choice.finish_reason, choice.logprobs) == ("stop", None)
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_nullable_fields_are_present(client: openai.OpenAI) -> None:
    """OpenAI's schema requires these keys even where they are null."""
    body = client.chat.completions.with_raw_response.create(model=MODEL, messages=QUESTION, max_tokens=2)
    choice = body.http_response.json()["choices"][0]
    assert {"index", "message", "logprobs", "finish_reason"} <= set(choice)
    assert {"role", "content", "refusal"} <= set(choice["message"])


def test_a_stream_is_the_same_text_under_one_id(client: openai.OpenAI) -> None:
    whole = _ask(client)
    stream = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_completion_tokens=40,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert (last.choices, last.usage) == ([], whole.usage)
    assert {chunk.id for chunk in chunks} == {last.id}


def test_the_stream_helper_accumulates(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=QUESTION, temperature=0, max_tokens=40) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == "The capital of France is Paris."


def test_a_stream_can_be_left_early(client: openai.OpenAI) -> None:
    with client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=500, stream=True) as stream:
        next(iter(stream))
    assert _ask(client).choices[0].finish_reason == "stop"


async def _ask_all(server: LiveServer, count: int) -> list[str | None]:
    import asyncio

    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client:
        answers = await asyncio.gather(
            *(
                client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=40)
                for _ in range(count)
            )
        )
    return [answer.choices[0].message.content for answer in answers]


def test_many_at_once(server: LiveServer) -> None:
    import asyncio

    assert asyncio.run(_ask_all(server, 16)) == ["The capital of France is Paris."] * 16


def test_logprobs(client: openai.OpenAI) -> None:
    choice = _ask(client, logprobs=True, top_logprobs=2).choices[0]
    assert choice.logprobs is not None
    content = choice.logprobs.content or []
    # As with vLLM, the token that ended the answer has an entry too, and no text.
    assert "".join(token.token for token in content) == f"{choice.message.content}{END}"
    assert all(bytes(token.bytes or []).decode() == token.token for token in content)
    assert all(len(token.top_logprobs) == 2 for token in content)


def test_logprobs_of_a_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=40, temperature=0, stream=True, logprobs=True
    )
    text, tokens = "", ""
    for chunk in stream:
        (choice,) = chunk.choices
        text += choice.delta.content or ""
        tokens += "".join(token.token for token in (choice.logprobs and choice.logprobs.content) or [])
    assert text == "The capital of France is Paris."
    assert tokens == f"{text}{END}"


def test_n_answers(client: openai.OpenAI) -> None:
    answer = _ask(client, n=3, temperature=1.0, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


def test_length_is_the_reason_of_a_cut_answer(client: openai.OpenAI) -> None:
    answer = _ask(client, max_completion_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


def test_text_parts_and_every_role(client: openai.OpenAI) -> None:
    messages = [
        {"role": "developer", "content": "You are a helpful assistant."},
        {"role": "user", "content": [{"type": "text", "text": "My name is Anna."}]},
        {"role": "assistant", "content": "Hello, Anna!", "refusal": None},
        {"role": "user", "content": "What is the capital of France?", "name": "anna"},
    ]
    assert "Paris" in (_ask(client, messages).choices[0].message.content or "")


def test_an_answer_can_be_sent_back_as_it_came(client: openai.OpenAI) -> None:
    first = _ask(client).choices[0].message
    messages = [*QUESTION, first, {"role": "user", "content": "What is the capital of Italy?"}]
    assert "Rome" in (_ask(client, messages).choices[0].message.content or "")


def test_images_are_refused(client: openai.OpenAI) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(openai.BadRequestError, match="text"):
        _ask(client, [{"role": "user", "content": [part]}])
