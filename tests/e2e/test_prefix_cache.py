"""The prefix cache, seen by a client: shared prompts and later turns are computed once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from support.servers import running_server

BLOCK = 16


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def _complete(client, prompt):
    return client.completions.create(model="quire-tiny", prompt=prompt, max_tokens=8, temperature=0)


@pytest.mark.parametrize("at_once", [False, True])
def test_shared_system_prompt_is_computed_once(server, client, at_once):
    """Five requests share 500 tokens; counted in tokens and visible in `cached_tokens`."""
    system = [(7 * i + at_once) % 1900 + 40 for i in range(500)]
    prompts = [[*system, *range(300 + i, 320 + i)] for i in range(5)]
    before = server.kv_state()
    with ThreadPoolExecutor(5 if at_once else 1) as pool:
        answers = list(pool.map(lambda prompt: _complete(client, prompt), prompts))
    after = server.kv_state()
    full_blocks = 500 // BLOCK
    cached = sorted(answer.usage.prompt_tokens_details.cached_tokens for answer in answers)
    assert cached == [0] + [full_blocks * BLOCK] * 4
    assert after.prefix_cache_hits - before.prefix_cache_hits == 4 * full_blocks * BLOCK


def test_second_turn_reuses_the_generated_first_turn(server, client):
    """A chat's second turn finds the blocks of the first prompt and of the answer to it."""
    messages = [{"role": "user", "content": "Tell me a short story about a fox, please."}]
    first = client.chat.completions.create(
        model="quire-tiny", messages=messages, max_completion_tokens=64, temperature=0, extra_body={"min_tokens": 40}
    )
    messages += [first.choices[0].message.model_dump(include={"role", "content"}), {"role": "user", "content": "More!"}]
    second = client.chat.completions.create(model="quire-tiny", messages=messages, max_completion_tokens=4)
    known = first.usage.prompt_tokens + first.usage.completion_tokens
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached > first.usage.prompt_tokens, "blocks of the generated turn were reused"
    assert cached >= (known - 1) // BLOCK * BLOCK - BLOCK


def test_caching_can_be_switched_off():
    with running_server(enable_prefix_caching=False) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            prompt = list(range(100, 300))
            answers = [_complete(client, prompt) for _ in range(2)]
        assert [answer.usage.prompt_tokens_details.cached_tokens for answer in answers] == [0, 0]
        assert server.kv_state().prefix_cache_hits == 0
