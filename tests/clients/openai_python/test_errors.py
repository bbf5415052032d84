"""What the official client raises, and when it tries again."""

from __future__ import annotations

from collections.abc import Callable

import openai
import pytest
from live_server import MODEL, LiveServer

QUESTION = [{"role": "user", "content": "Hello!"}]
Call = Callable[[openai.OpenAI], object]

BAD: list[tuple[str, Call, type[openai.APIStatusError], str | None]] = [
    ("model", lambda c: c.chat.completions.create(model="x", messages=QUESTION), openai.NotFoundError, "model"),
    ("role", lambda c: c.chat.completions.create(model=MODEL, messages=[{"role": "x"}]), openai.BadRequestError, None),
    ("empty", lambda c: c.chat.completions.create(model=MODEL, messages=[]), openai.BadRequestError, "messages"),
    (
        "temperature",
        lambda c: c.chat.completions.create(model=MODEL, messages=QUESTION, temperature=9),
        openai.BadRequestError,
        "temperature",
    ),
    (
        "unknown field",
        lambda c: c.chat.completions.create(model=MODEL, messages=QUESTION, extra_body={"no_such": 1}),
        openai.BadRequestError,
        "no_such",
    ),
    (
        "audio",
        lambda c: c.chat.completions.create(
            model=MODEL, messages=QUESTION, modalities=["audio"], audio={"voice": "ash", "format": "wav"}
        ),
        openai.BadRequestError,
        None,
    ),
]


@pytest.mark.parametrize(("name", "call", "kind", "param"), BAD, ids=[case[0] for case in BAD])
def test_bad_requests(
    client: openai.OpenAI, name: str, call: Call, kind: type[openai.APIStatusError], param: str | None
) -> None:
    with pytest.raises(kind) as caught:
        call(client)
    error = caught.value
    assert error.type == "invalid_request_error"
    assert error.message
    assert set(error.body or {}) == {"message", "type", "param", "code"}
    if param is not None:
        assert error.param == param


def test_a_stream_is_refused_before_its_first_byte(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=9, stream=True)


def test_a_prompt_beyond_the_context(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt=[7] * 5000)
    assert caught.value.code == "context_length_exceeded"


def test_an_unknown_path(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.images.generate(model=MODEL, prompt="a cat")


def test_the_request_id_is_the_callers(client: openai.OpenAI) -> None:
    raw = client.models.with_raw_response.list(extra_headers={"x-request-id": "mine-1"})
    assert raw.headers["x-request-id"] == "mine-1"


def test_every_answer_has_a_request_id(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=1)
    assert answer._request_id
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-none")
    assert caught.value.request_id


def test_a_client_that_gives_up(server: LiveServer) -> None:
    with (
        openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0, timeout=0.001) as hasty,
        pytest.raises(openai.APITimeoutError),
    ):
        hasty.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=500)
