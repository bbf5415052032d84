from __future__ import annotations

import httpx
import pytest
from support.fake_scheduler import FakeScheduler
from support.gateway_fixtures import MODEL

from quire.errors import InvalidRequestError
from quire.gateway import answer_size
from quire.gateway.answer_size import MAX_NUMBERS, check_answer_size
from quire.gateway.tenants import Tenant
from quire.gateway.validation import RequestContext, ValidRequest
from quire.sampling_params import SamplingParams


def _request(prompt: int = 1, **params: int) -> ValidRequest:
    return ValidRequest(RequestContext("r", Tenant("")), None, [1] * prompt, SamplingParams(**params), ())


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (_request(n=129, max_tokens=1 << 17), "max_tokens"),
        (_request(best_of=65, n=1, max_tokens=1 << 17), "max_tokens"),
        (_request(n=8, max_tokens=1 << 17, logprobs=20), "max_tokens"),
        (_request(1 << 20, max_tokens=1, prompt_logprobs=20), "prompt_logprobs"),
    ],
)
def test_products_are_bounded(request_: ValidRequest, field: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"more than the {MAX_NUMBERS:,}") as caught:
        check_answer_size([request_])
    assert caught.value.field == field


def test_what_is_usual_passes() -> None:
    check_answer_size([_request(1 << 17, n=1, max_tokens=1 << 17)])
    check_answer_size([_request(n=128, max_tokens=1 << 17)])
    check_answer_size([_request(n=8, max_tokens=1 << 15, logprobs=20)])
    check_answer_size([_request(1 << 17, max_tokens=1, prompt_logprobs=20)])


def test_prompts_add_up() -> None:
    with pytest.raises(InvalidRequestError, match="for 129 prompts"):
        check_answer_size([_request(n=1, max_tokens=1 << 17)] * 129)


@pytest.mark.asyncio(loop_scope="module")
async def test_it_is_refused_before_the_200(
    http: httpx.AsyncClient, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_size, "MAX_NUMBERS", 1000)
    body = {"model": MODEL, "prompt": "x", "n": 8, "max_tokens": 100, "logprobs": 5, "stream": True}
    for changed, status in (({}, 400), ({"max_tokens": 10}, 200), ({"prompt": ["x"] * 3, "max_tokens": 10}, 400)):
        answer = await http.post("/v1/completions", json={**body, **changed})
        assert answer.status_code == status
        if status == 400:
            assert answer.json()["error"]["param"] == "max_tokens"
    assert len(scheduler.requests) == 1
