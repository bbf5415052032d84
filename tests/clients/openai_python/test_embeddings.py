"""/v1/embeddings through the official client."""

from __future__ import annotations

import math
from typing import Any

import openai
import pytest
from live_server import MODEL


def _embed(client: openai.OpenAI, texts: Any, **params: Any) -> list[list[float]]:
    answer = client.embeddings.create(model=MODEL, input=texts, **{"encoding_format": "float", **params})
    assert answer.object == "list"
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    assert {item.object for item in answer.data} == {"embedding"}
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    return [item.embedding for item in answer.data]


def test_one_text(client: openai.OpenAI) -> None:
    (vector,) = _embed(client, "The capital of France is")
    assert math.hypot(*vector) == pytest.approx(1, abs=1e-3)


def test_base64_is_the_same(client: openai.OpenAI, lenient: openai.OpenAI) -> None:
    """What the client asks for unless told otherwise, and decodes; its type knows floats only."""
    (decoded,) = lenient.embeddings.create(model=MODEL, input="A cat").data
    assert decoded.embedding == pytest.approx(_embed(client, "A cat")[0], abs=1e-6)


def test_several_texts_are_what_each_is_alone(client: openai.OpenAI) -> None:
    texts = ["The capital of France is", "A cat", "Once upon a time"]
    together = _embed(client, texts)
    for text, vector in zip(texts, together, strict=True):
        assert _embed(client, text)[0] == pytest.approx(vector, abs=1e-5)


def test_token_ids(client: openai.OpenAI) -> None:
    assert _embed(client, [[5, 6, 7], [8, 9]])[0] == pytest.approx(_embed(client, [5, 6, 7])[0], abs=1e-5)


def test_dimensions(client: openai.OpenAI) -> None:
    """Fewer dimensions are the first ones of the whole vector, made a unit again."""
    whole = _embed(client, "A cat")[0]
    short = _embed(client, "A cat", dimensions=8)[0]
    length = math.hypot(*whole[:8])
    assert short == pytest.approx([part / length for part in whole[:8]], abs=1e-4)


@pytest.mark.parametrize("params", [{"input": []}, {"input": ""}, {"input": "A cat", "dimensions": 100_000}])
def test_bad_input(client: openai.OpenAI, params: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=MODEL, **params)
    assert caught.value.param in params
