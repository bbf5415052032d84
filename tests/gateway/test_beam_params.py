"""What does not go with beam search is refused, and the field named."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from support.fake_scheduler import FakeScheduler
from support.gateway_fixtures import MODEL

from quire.errors import InvalidRequestError
from quire.gateway.beam_params import check_beam_search
from quire.gateway.validation import ModelLimits
from quire.sampling_params import SamplingParams

# (changes to a beam search, the field at fault)
CASES: list[tuple[dict[str, Any], str]] = [
    ({"best_of": 9}, "best_of"),
    ({"n": 2, "stream": True}, "stream"),
    ({"temperature": 0.5}, "temperature"),
    ({"top_k": 5}, "top_k"),
    ({"top_p": 0.5}, "top_p"),
    ({"min_p": 0.5}, "min_p"),
    ({"presence_penalty": 1}, "presence_penalty"),
    ({"frequency_penalty": 1}, "frequency_penalty"),
    ({"repetition_penalty": 1.1}, "repetition_penalty"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"stop": "x"}, "stop"),
    ({"bad_words": ["x"]}, "bad_words"),
    ({"allowed_token_ids": [1]}, "allowed_token_ids"),
    ({"logprobs": 1}, "logprobs"),
]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_field_at_fault_is_named(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    body = {"model": MODEL, "prompt": "hello", "max_tokens": 2, "n": 2, "use_beam_search": True}
    for changes, param in CASES:
        answer = await http.post("/v1/completions", json={**body, **changes})
        assert answer.status_code == 400, changes
        assert answer.json()["error"]["param"] == param, answer.json()
    assert scheduler.requests == []
    assert (await http.post("/v1/completions", json=body)).status_code == 200


@pytest.mark.asyncio(loop_scope="module")
async def test_a_chat_can_search_and_cannot_stream_it(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    messages = [{"role": "user", "content": "hello"}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 2, "best_of": 2, "use_beam_search": True}
    assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
    answer = await http.post("/v1/chat/completions", json={**body, "stream": True})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream")


def test_the_vocabulary_must_have_as_many_tokens_as_beams_look_at() -> None:
    limits = ModelLimits(("tiny",), "tiny", 100, vocab_size=20, max_num_seqs=64, max_logprobs=0, hidden_size=8)
    for fields, eos, field in (
        ({"best_of": 21}, (), "best_of"),
        ({"n": 19}, (3, 4), "n"),
        ({"n": 18, "stop_token_ids": [5]}, (3, 4), "n"),
    ):
        with pytest.raises(InvalidRequestError, match="too small") as refused:
            check_beam_search(SamplingParams(use_beam_search=True, **fields), limits, eos)
        assert refused.value.field == field
    with pytest.raises(InvalidRequestError) as refused:
        check_beam_search(SamplingParams(use_beam_search=True, stop_token_ids=list(range(65))), limits, ())
    assert refused.value.field == "stop_token_ids"
    for fields in ({"best_of": 19}, {"n": 20, "ignore_eos": True}, {"n": 19, "stop_token_ids": [3]}):
        check_beam_search(SamplingParams(use_beam_search=True, **fields), limits, (3,))
    check_beam_search(SamplingParams(n=21), limits, ())
