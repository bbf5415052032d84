"""Logprobs of prompts equal transformers', whatever the scheduler does meanwhile."""

from __future__ import annotations

import random

import openai
import pytest
import torch
from support.checkpoints import load_reference, make_checkpoint
from support.servers import inspect_scheduler, running_server

from quire import LLM, SamplingParams
from quire.executor.model_config import load_model_config
from quire.internal.v1 import scheduler_pb2

TOP = 3
LENGTHS = [1, 2, 15, 16, 17, 40, 64, 65, 90, 120]
PARAMS = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, prompt_logprobs=TOP)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def prompts():
    """Their first 20 tokens are the same."""
    draw = random.Random(5)
    shared = [draw.randrange(256) for _ in range(20)]
    return [(shared + [draw.randrange(256) for _ in range(length)])[:length] for length in LENGTHS]


@pytest.fixture(scope="module")
def expected(folder, prompts):
    """For each prompt float64 [tokens - 1, vocab]."""
    torch.set_num_threads(1)
    model = load_reference(folder)
    with torch.no_grad():
        return [torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1].double(), dim=-1) for ids in prompts]


def _state(llm):
    with inspect_scheduler(llm.scheduler_address) as scheduler:
        return scheduler.GetKvCacheState(scheduler_pb2.GetKvCacheStateRequest(), timeout=10)


def _check(outputs, prompts, expected):
    for output, prompt, rows in zip(outputs, prompts, expected, strict=True):
        first, *others = output.prompt_logprobs
        assert first is None
        assert len(others) == len(rows) == len(prompt) - 1
        for position, row, token_id in zip(others, rows, prompt[1:], strict=True):
            assert position[token_id].logprob == pytest.approx(float(row[token_id]), abs=1e-4)
            likeliest = {entry.rank: entry.logprob for entry in position.values() if entry.rank is not None}
            assert sorted(likeliest) == list(range(1, TOP + 1))
            best = torch.topk(row, TOP).values.tolist()
            assert [likeliest[rank] for rank in range(1, TOP + 1)] == pytest.approx(best, abs=1e-4)
            assert position[token_id].decoded_token is not None


def test_with_room_for_all_and_known_prefixes(folder, prompts, expected):
    """Twice: the second time all prompts could be found in the prefix cache. Then with two continuations each."""
    with LLM(folder, dtype="float32", kv_cache_memory="16MiB", threads=1) as llm:
        for _ in range(2):
            outputs = llm.generate(prompts, PARAMS, use_tqdm=False)
            _check(outputs, prompts, expected)
            assert [output.num_cached_tokens for output in outputs] == [0] * len(prompts)
        plain = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
        again = llm.generate(prompts, plain, use_tqdm=False)
        assert [output.prompt_logprobs for output in again] == [None] * len(prompts)
        assert again[-1].num_cached_tokens > 0
        assert [a.outputs[0].token_ids for a in again] == [o.outputs[0].token_ids for o in outputs]
        params = SamplingParams(n=2, temperature=1, seed=3, max_tokens=8, ignore_eos=True, prompt_logprobs=TOP)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        _check(outputs, prompts, expected)
        assert all(len(output.outputs) == 2 for output in outputs)
        assert _state(llm).held_blocks == 0


@pytest.mark.parametrize("prefix_caching", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_chunked_and_preempted(folder, prompts, expected, prefix_caching):
    """A budget of 24 tokens a step, and a pool that holds little more than one of the requests."""
    bytes_per_token = load_model_config(folder).cache_group(element_bytes=4).bytes_per_token
    settings = {
        "kv_cache_memory": str(208 * bytes_per_token),
        "max_num_batched_tokens": 24,
        "max_model_len": 200,
        "enable_prefix_caching": prefix_caching,
        "threads": 1,
    }
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True, prompt_logprobs=TOP)
    with LLM(folder, dtype="float32", **settings) as llm:
        _check(llm.generate(prompts, params, use_tqdm=False), prompts, expected)
        assert _state(llm).num_preemptions > 0


@pytest.mark.slow
def test_through_the_official_client(folder, prompts, expected):
    """As vLLM's field, and as OpenAI's echo with logprobs."""
    with running_server(model=str(folder), dtype="float32", served_model_name="tiny", threads=1) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            settings = {"model": "tiny", "prompt": prompts[5], "max_tokens": 4, "temperature": 0}
            whole = client.completions.create(**settings, echo=True, logprobs=1, extra_body={"prompt_logprobs": TOP})
        server.wait_idle()
    choice = whole.choices[0]
    given = [float(row[token_id]) for row, token_id in zip(expected[5], prompts[5][1:], strict=True)]
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1 : len(prompts[5])] == pytest.approx(given, abs=1e-4)
    first, *others = choice.prompt_logprobs
    assert first is None
    told = [position[str(token_id)]["logprob"] for position, token_id in zip(others, prompts[5][1:], strict=True)]
    assert told == pytest.approx(given, abs=1e-4)
