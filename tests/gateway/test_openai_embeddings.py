"""/v1/embeddings, /v1/score and /rerank in front of a fake scheduler."""

from __future__ import annotations

import math
from array import array
from base64 import b64decode
from typing import Any

import httpx
import pytest
from support.fake_scheduler import HIDDEN_SIZE, FakeScheduler, pseudo_state
from support.gateway_fixtures import MODEL
from tokenizers import Tokenizer

from quire.errors import ServiceUnavailableError

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def post(http: httpx.AsyncClient, path: str, **body: Any) -> Any:
    # Two thousand inputs take seconds where all processes are one.
    answer = await http.post(path, json={"model": MODEL, **body}, timeout=100)
    assert answer.status_code == 200, answer.text
    return answer.json()


def expected(scheduler: FakeScheduler, index: int) -> list[float]:
    """The unit vector of a submitted request."""
    state = array("f", pseudo_state(scheduler.requests[index].message))
    return [value / math.hypot(*state) for value in state]


async def test_the_answer_is_openais(http: httpx.AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer) -> None:
    answer = await post(http, "/v1/embeddings", input=["hello world", "café"], user="someone")
    assert set(answer) == {"object", "data", "model", "usage"}
    assert (answer["object"], answer["model"]) == ("list", MODEL)
    for index, entry in enumerate(answer["data"]):
        assert (entry["object"], entry["index"]) == ("embedding", index)
        assert entry["embedding"] == pytest.approx(expected(scheduler, index), abs=1e-6)
    count = len(tokenizer.encode("hello world").ids) + len(tokenizer.encode("café").ids)
    assert answer["usage"] == {"prompt_tokens": count, "total_tokens": count}


@pytest.mark.parametrize(
    ("given", "count"), [("hello", 1), (["a", "b", "c"], 3), ([70, 71], 1), ([[70], [71, 72]], 2), (["a"] * 2048, 2048)]
)
async def test_every_form_of_input(http: httpx.AsyncClient, scheduler: FakeScheduler, given: Any, count: int) -> None:
    assert len((await post(http, "/v1/embeddings", input=given))["data"]) == count


async def test_base64_is_little_endian_float32(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    as_floats = await post(http, "/v1/embeddings", input="hello", encoding_format="float", dimensions=5)
    as_base64 = await post(http, "/v1/embeddings", input="hello", encoding_format="base64", dimensions=5)
    decoded = array("f", b64decode(as_base64["data"][0]["embedding"]))
    assert decoded.tolist() == as_floats["data"][0]["embedding"]
    assert len(decoded) == 5


async def test_fields_reach_the_scheduler(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    await post(http, "/v1/embeddings", input=[70, 71, 72], pooling="mean", truncate_prompt_tokens=2, priority=-3)
    (submitted,) = scheduler.requests
    assert submitted.prompt_token_ids == [71, 72]
    assert (submitted.message.pooling, submitted.message.priority) == (2, -3)


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/embeddings", {}, 400, "input"),
        ("/v1/embeddings", {"input": []}, 400, "input"),
        ("/v1/embeddings", {"input": ""}, 400, "input"),
        ("/v1/embeddings", {"input": ["a", ""]}, 400, "input[1]"),
        ("/v1/embeddings", {"input": [[70], []]}, 400, "input[1]"),
        ("/v1/embeddings", {"input": ["a", 7]}, 400, "input"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, 400, "input"),
        ("/v1/embeddings", {"input": [[70, 9999]]}, 400, "input"),
        ("/v1/embeddings", {"input": "a", "model": "other"}, 404, "model"),
        ("/v1/embeddings", {"input": "a", "dimensions": HIDDEN_SIZE + 1}, 400, "dimensions"),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, 400, "dimensions"),
        ("/v1/embeddings", {"input": "a", "dimensions": "4"}, 400, "dimensions"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "pooling": "max"}, 400, "pooling"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 0}, 400, "truncate_prompt_tokens"),
        ("/v1/embeddings", {"input": "a", "priority": 2**31}, 400, "priority"),
        ("/v1/embeddings", {"input": "a", "no_such_field": 1}, 400, "no_such_field"),
        ("/v1/score", {"text_1": "a"}, 400, "text_2"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, 400, "text_1"),
        ("/v1/score", {"text_1": "a", "text_2": ["b", ""]}, 400, "text_2[1]"),
        ("/v1/score", {"text_1": "a", "text_2": []}, 400, "text_2"),
        ("/v1/score", {"text_1": 7, "text_2": "a"}, 400, "text_1"),
        ("/rerank", {"query": "a", "documents": []}, 400, "documents"),
        ("/rerank", {"query": "", "documents": ["a"]}, 400, "query"),
        ("/rerank", {"query": "a", "documents": ["b", {"title": "c"}]}, 400, "documents"),
        ("/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, 400, "top_n"),
    ],
)
async def test_bad_input_is_refused(
    http: httpx.AsyncClient, scheduler: FakeScheduler, path: str, body: Any, status: int, param: str
) -> None:
    answer = await http.post(path, json={"model": MODEL, **body})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param
    assert not scheduler.requests, "nothing runs of a request that is refused"


async def test_the_schedulers_refusal_is_the_answer(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    scheduler.submit_error = ServiceUnavailableError("full")
    answer = await http.post("/v1/embeddings", json={"model": MODEL, "input": ["a", "b"]})
    assert answer.status_code == 503


async def test_scores_are_cosines(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    answer = await post(http, "/v1/score", text_1="alpha", text_2=["beta", "alpha"])
    assert (answer["object"], answer["model"]) == ("list", MODEL)
    assert answer["id"].startswith("score-")
    assert [(entry["index"], entry["object"]) for entry in answer["data"]] == [(0, "score"), (1, "score")]
    cosine = sum(a * b for a, b in zip(expected(scheduler, 0), expected(scheduler, 1), strict=True))
    assert answer["data"][0]["score"] == pytest.approx(cosine, abs=1e-6)
    assert answer["data"][1]["score"] == pytest.approx(1, abs=1e-6)
    assert len(scheduler.requests) == 3, "a text that all are compared with is embedded once"
    assert answer["usage"]["prompt_tokens"] == sum(len(request.prompt_token_ids) for request in scheduler.requests)


@pytest.mark.parametrize(
    ("first", "second", "count"), [("a", "b", 1), ("a", ["b", "c"], 2), (["a"], "b", 1), (["a", "b"], ["a", "b"], 2)]
)
async def test_texts_are_paired(
    http: httpx.AsyncClient, scheduler: FakeScheduler, first: Any, second: Any, count: int
) -> None:
    data = (await post(http, "/v1/score", text_1=first, text_2=second))["data"]
    assert len(data) == count
    if first == second:
        assert [entry["score"] for entry in data] == pytest.approx([1, 1], abs=1e-6)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_documents_are_ranked(http: httpx.AsyncClient, scheduler: FakeScheduler, path: str) -> None:
    documents = ["one", {"text": "query"}, "two", "three"]
    answer = await post(http, path, query="query", documents=documents)
    assert set(answer) == {"id", "model", "results", "usage"}
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    best = answer["results"][0]
    assert (best["index"], best["document"]) == (1, {"text": "query"})
    assert sorted(result["index"] for result in answer["results"]) == [0, 1, 2, 3]


async def test_only_the_best_documents(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    documents = ["one", "query", "two"]
    answer = await post(http, "/rerank", query="query", documents=documents, top_n=2, return_documents=False)
    assert [set(result) for result in answer["results"]] == [{"index", "relevance_score"}] * 2
    assert answer["results"][0]["index"] == 1


async def test_the_description_names_the_bodies(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    for path, body in [
        ("/v1/embeddings", "EmbeddingRequest"),
        ("/v1/score", "ScoreRequest"),
        ("/rerank", "RerankRequest"),
    ]:
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{body}"}
        assert body in document["components"]["schemas"]
