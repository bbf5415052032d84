"""The official client, which here refuses every answer that OpenAI's schema does not allow."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from live_server import LiveServer


@pytest.fixture(scope="session")
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    """Plain calls."""
    with openai.OpenAI(
        base_url=server.base_url, api_key="none", max_retries=0, timeout=120, _strict_response_validation=True
    ) as made:
        yield made


@pytest.fixture(scope="session")
def lenient(server: LiveServer) -> Iterator[openai.OpenAI]:
    """For the few answers that OpenAI itself gives against its client's types; a test that uses it says which."""
    with openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0, timeout=120) as made:
        yield made
