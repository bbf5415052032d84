"""best_of: which continuations are kept, and what the scheduler and the client see of it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from support.fake_scheduler import FakeScheduler
from support.gateway_fixtures import MODEL
from tokenizers import Tokenizer

from quire.gateway.best_of import BestOf
from quire.outputs import CompletionDelta, TokenLogprobs


def _delta(index: int, *logprobs: float, finish: bool = False) -> CompletionDelta:
    positions = [TokenLogprobs(70 + index, logprob) for logprob in logprobs]
    return CompletionDelta(
        index,
        str(index) * len(logprobs),
        [70 + index] * len(logprobs),
        logprobs=positions,
        finish_reason="stop" if finish else None,
    )


def test_the_highest_mean_logprobs_come_first_and_are_numbered_anew() -> None:
    best_of = BestOf(4, 2, with_logprobs=True)
    best_of.add([_delta(0, -1.0), _delta(1, -3.0, finish=True), _delta(2, -0.5, -1.0)])
    # The sum of sequence 2 is the lowest of all, and its mean the highest.
    best_of.add([_delta(0, -1.2, finish=True), _delta(2, -0.6, -1.0, -1.0, finish=True), _delta(3, -1.5, finish=True)])
    first, second = best_of.best()
    assert (first.index, first.text, first.finish_reason) == (0, "22222", "stop")
    assert first.cumulative_logprob == pytest.approx(-4.1)
    assert first.logprobs is not None and len(first.logprobs) == 5
    assert (second.index, second.text) == (1, "00")


def test_of_equals_the_first_is_kept_and_logprobs_nobody_asked_for_are_not_given() -> None:
    best_of = BestOf(3, 1, with_logprobs=False)
    best_of.add(_delta(index, -1.0, finish=True) for index in range(3))
    (only,) = best_of.best()
    assert only.text == "0"
    assert only.logprobs is None
    assert only.cumulative_logprob == -1.0


async def _complete(http: httpx.AsyncClient, **body: Any) -> Any:
    answer = await http.post("/v1/completions", json={"model": MODEL, "prompt": "hello", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.asyncio(loop_scope="module")
async def test_all_are_generated_and_counted_and_the_best_returned(
    http: httpx.AsyncClient, scheduler: FakeScheduler
) -> None:
    answer = await _complete(http, n=2, best_of=5, max_tokens=3)
    (submitted,) = scheduler.requests
    assert len(submitted.message.sequences) == 5
    assert submitted.params.logprobs == 0 and submitted.params.HasField("logprobs")
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert [choice["logprobs"] for choice in answer["choices"]] == [None, None]
    assert answer["usage"]["completion_tokens"] == 15


@pytest.mark.asyncio(loop_scope="module")
async def test_best_of_that_equals_n_changes_nothing(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    answer = await http.post(
        "/v1/completions", json={"model": MODEL, "prompt": "hello", "n": 2, "best_of": 2, "stream": True}
    )
    assert answer.status_code == 200
    assert not scheduler.requests[0].params.HasField("logprobs")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_beam_search_has_n_outputs_and_no_sampling(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    """The model's defaults for sampling (temperature 0.75, top_k 40) do not reach it."""
    await _complete(http, n=2, best_of=4, use_beam_search=True, length_penalty=2, early_stopping="never", max_tokens=3)
    (submitted,) = scheduler.requests
    params = submitted.params
    assert [state.index for state in submitted.message.sequences] == [0, 1]
    assert (params.temperature, params.top_k, params.best_of, params.length_penalty) == (0, 0, 4, 2)
    assert params.use_beam_search and params.early_stopping == 2
    # What asks for nothing is no reason to refuse.
    await _complete(http, n=2, use_beam_search=True, temperature=0, top_p=1, logit_bias={}, stop=[], max_tokens=3)


@pytest.mark.asyncio(loop_scope="module")
async def test_bad_words_go_as_tokens(http: httpx.AsyncClient, scheduler: FakeScheduler, tokenizer: Tokenizer) -> None:
    await _complete(http, bad_words=["Paris", " Tokyo"], allowed_token_ids=[70, 71], max_tokens=2)
    (submitted,) = scheduler.requests
    found = {bytes(word) for word in submitted.message.constraints.bad_words}

    def packed(text: str) -> bytes:
        return b"".join(token_id.to_bytes(4, "little") for token_id in tokenizer.encode(text).ids)

    for word in ("Paris", " Paris", "Tokyo", " Tokyo"):
        assert any(packed(word).endswith(one) for one in found), word
    assert list(submitted.params.allowed_token_ids) == [70, 71]
