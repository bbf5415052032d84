"""Keys, echo, prompts' logprobs and tokens of a whole server, through the official client."""

from __future__ import annotations

import math

import httpx
import openai
import pytest
from support.servers import running_server

MODEL = "quire-tiny"
FRANCE = "The capital of France is"


@pytest.fixture(scope="module")
def server():
    with running_server(api_key=["sesame"], max_concurrent_requests=64) as running:
        yield running
        running.wait_idle()


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sesame", max_retries=0) as made:
        yield made


def test_the_key_reaches_the_gateway(server, client):
    assert [model.id for model in client.models.list()] == [MODEL]
    with pytest.raises(openai.AuthenticationError) as caught:
        client.with_options(api_key="other").completions.create(model=MODEL, prompt="x")
    assert caught.value.code == "invalid_api_key"
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_an_echo_has_the_logprobs_that_generating_it_had(client):
    generated = client.completions.create(model=MODEL, prompt=FRANCE, max_tokens=8, temperature=0, logprobs=1)
    text = FRANCE + generated.choices[0].text
    echo = client.completions.create(model=MODEL, prompt=text, max_tokens=0, echo=True, logprobs=1)
    (choice,) = echo.choices
    assert (choice.text, choice.finish_reason) == (text, "length")
    assert echo.usage.completion_tokens == 0
    expected = generated.choices[0].logprobs.token_logprobs
    found = choice.logprobs.token_logprobs[-len(expected) :]
    assert choice.logprobs.tokens[-len(expected) :] == generated.choices[0].logprobs.tokens
    assert all(math.isclose(one, other, abs_tol=1e-3) for one, other in zip(expected, found, strict=True))


def test_token_ids_and_the_prompts_logprobs_of_a_chat(client):
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        max_tokens=4,
        extra_body={"return_token_ids": True, "prompt_logprobs": 0},
    )
    assert len(answer.choices[0].token_ids) == answer.usage.completion_tokens
    assert len(answer.prompt_token_ids) == len(answer.prompt_logprobs) == answer.usage.prompt_tokens
    nothing, *positions = answer.prompt_logprobs
    assert nothing is None
    for token_id, position in zip(answer.prompt_token_ids[1:], positions, strict=True):
        assert position[str(token_id)]["logprob"] <= 0


def test_a_cut_prompt_and_its_stop(client):
    whole = client.completions.create(model=MODEL, prompt=FRANCE, max_tokens=4, temperature=0)
    extra = {"truncate_prompt_tokens": -1, "include_stop_str_in_output": True}
    cut = client.completions.create(
        model=MODEL, prompt="noise " * 5000 + FRANCE, max_tokens=4, temperature=0, stop="Paris", extra_body=extra
    )
    assert cut.usage.prompt_tokens > whole.usage.prompt_tokens
    assert cut.choices[0].text.endswith("Paris") or cut.choices[0].finish_reason == "length"


def test_tokens_there_and_back(server):
    with httpx.Client(base_url=server.url, headers={"authorization": "Bearer sesame"}) as http:
        tokens = http.post("/tokenize", json={"prompt": FRANCE, "add_special_tokens": False}).json()
        assert tokens["count"] == len(tokens["tokens"])
        assert http.post("/detokenize", json={"tokens": tokens["tokens"]}).json() == {"prompt": FRANCE}
