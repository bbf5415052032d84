"""best_of, beam search, bad words, allowed tokens and priorities through a whole server."""

from __future__ import annotations

import httpx

from quire import SamplingParams
from quire.client import Client

MODEL = "quire-tiny"
FRANCE = "The capital of France is"


def _post(server, path="completions", **body):
    if path == "completions":
        body = {"prompt": FRANCE, **body}
    return httpx.post(f"{server.url}/v1/{path}", json={"model": MODEL, "max_tokens": 8, **body}, timeout=60)


def _complete(server, **body):
    answer = _post(server, **body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_best_of_gives_the_best_of_what_n_gives(server):
    sampled = {"prompt": "Once upon a time", "seed": 5, "temperature": 1.0, "max_tokens": 12}
    every = _complete(server, n=5, logprobs=0, **sampled)["choices"]
    means = [sum(logprobs := choice["logprobs"]["token_logprobs"]) / len(logprobs) for choice in every]
    ranked = sorted(range(5), key=lambda index: -means[index])
    answer = _complete(server, n=2, best_of=5, **sampled)
    assert [choice["text"] for choice in answer["choices"]] == [every[index]["text"] for index in ranked[:2]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    generated = sum(len(choice["logprobs"]["token_logprobs"]) for choice in every)
    assert answer["usage"]["completion_tokens"] == generated


def test_beam_search_finds_likelier_texts_than_greedy_decoding(server):
    prompt = {"prompt": "Once upon a time", "max_tokens": 12, "ignore_eos": True}
    greedy = _complete(server, temperature=0, logprobs=0, **prompt)["choices"][0]
    with Client(server.grpc_address) as client:
        params = SamplingParams(use_beam_search=True, n=3, best_of=6, max_tokens=12, ignore_eos=True)
        parts = {part.index: part for part in client.generate(prompt["prompt"], params)}
    choices = _complete(server, use_beam_search=True, n=3, best_of=6, **prompt)["choices"]
    assert [choice["text"] for choice in choices] == [parts[index].text for index in range(3)]
    logprobs = [parts[index].cumulative_logprob for index in range(3)]
    assert logprobs == sorted(logprobs, reverse=True)
    assert logprobs[0] >= sum(greedy["logprobs"]["token_logprobs"]) - 1e-3


def test_a_chat_can_search(server):
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    answer = _post(server, "chat/completions", messages=messages, n=2, use_beam_search=True, max_tokens=40)
    choices = answer.json()["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["stop", "stop"]
    assert "Paris" in choices[0]["message"]["content"]
    assert choices[0]["message"]["content"] != choices[1]["message"]["content"]


def test_bad_words_do_not_come(server):
    assert _complete(server, temperature=0)["choices"][0]["text"].startswith(" Paris")
    text = _complete(server, temperature=0, bad_words=["Paris"])["choices"][0]["text"]
    assert text and "Paris" not in text


def test_only_allowed_tokens_come(server):
    with Client(server.grpc_address) as client:
        params = SamplingParams(temperature=1.0, max_tokens=30, allowed_token_ids=[70, 71, 300])
        token_ids = [token_id for part in client.generate(FRANCE, params) for token_id in part.token_ids]
    assert len(token_ids) == 30
    assert set(token_ids) <= {70, 71, 300}


def test_a_search_that_does_not_fit_is_refused_before_it_runs(server):
    answer = _post(server, use_beam_search=True, best_of=257)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "best_of")
