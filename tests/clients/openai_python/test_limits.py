"""A server with a key and a limit: what the official client raises, and that it waits and tries again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import openai
import pytest
from live_server import MODEL, LiveServer, live_server

LONG = {"prompt": "Once upon a time", "max_tokens": 1900, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def guarded() -> Iterator[LiveServer]:
    """It takes one request at a time."""
    flags = ["--kv-cache-memory", "64MiB", "--log-level", "warning"]
    with live_server(*flags, "--api-key", "secret", "--max-concurrent-requests", "1") as running:
        yield running


@contextlib.contextmanager
def _client(server: LiveServer, key: str = "secret", max_retries: int = 0) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.base_url, api_key=key, max_retries=max_retries, timeout=120) as client:
        yield client


def test_a_wrong_key(guarded: LiveServer) -> None:
    with _client(guarded, key="wrong") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "invalid_api_key"


def test_the_right_key(guarded: LiveServer) -> None:
    with _client(guarded) as client:
        assert [model.id for model in client.models.list().data] == [MODEL]


def test_one_request_too_many(guarded: LiveServer) -> None:
    with _client(guarded) as client, client.completions.create(model=MODEL, stream=True, **LONG) as busy:
        next(iter(busy))
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model=MODEL, prompt="Hello", max_tokens=1)
    assert int(caught.value.response.headers["retry-after"]) > 0


def test_the_client_tries_again_until_there_is_room(guarded: LiveServer) -> None:
    """The client's own retries: it is told to come back, and by then the other request has gone."""
    with _client(guarded, max_retries=20) as client:
        busy = client.completions.create(model=MODEL, stream=True, **LONG)
        next(iter(busy))
        leave = threading.Timer(0.5, busy.close)
        leave.start()
        try:
            assert client.completions.create(model=MODEL, prompt="Hello", max_tokens=1).choices
        finally:
            leave.join()
