"""Greedy output equals transformers token for token, whatever the scheduler does meanwhile."""

from __future__ import annotations

from itertools import pairwise

import pytest
from support.checkpoints import load_reference, make_checkpoint
from support.reference import greedy_cases
from support.servers import inspect_scheduler

from quire import LLM, SamplingParams
from quire.config import BUNDLED_MODEL
from quire.executor.model_config import load_model_config
from quire.internal.v1 import scheduler_pb2

MAX_TOKENS = 20
LENGTHS = [1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 40, 47, 48, 49, 64, 65, 70, 80, 90, 96, 97, 100, 110, 120]
LENGTHS += [128, 129, 140, 150, 160, 161, 170]

SHAPES = {
    "llama-gqa-untied": ("llama", {}),
    "llama-mha-tied-biases": (
        "llama",
        {"num_key_value_heads": 4, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "llama-llama3-rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral": ("mistral", {}),
    "mistral-sliding-window": ("mistral", {"sliding_window": 24}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
}

# The decoders of all architectures are compared in tests/executor; these go through a whole server every day.
EVERY_DAY = ["llama-gqa-untied", "mistral-sliding-window", "bundled"]
MODELS = [name if name in EVERY_DAY else pytest.param(name, marks=pytest.mark.slow) for name in [*SHAPES, "bundled"]]

# The first serves comfortably; the second has a budget of 24 tokens a step and a pool that holds little more than
# one request of full length, so that prompts are cut into many chunks and sequences lose their blocks.
COMFORTABLE = {"kv_cache_memory": "16MiB", "threads": 1}
CRAMPED = {"max_num_batched_tokens": 24, "max_model_len": 200, "threads": 1}


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    """A checkpoint with 32 prompts of mixed lengths and their continuations by transformers, in float32."""
    if request.param == "bundled":
        folder, vocab_size = BUNDLED_MODEL, 2048
    else:
        architecture, overrides = SHAPES[request.param]
        folder = make_checkpoint(tmp_path_factory.mktemp(request.param), architecture, **overrides)
        vocab_size = 320
    reference = load_reference(folder)
    cases = greedy_cases(reference, LENGTHS, MAX_TOKENS, seed=7, vocab_size=vocab_size, shared=20)
    return folder, cases


def _pool_for(folder, tokens: int) -> str:
    """The size of a pool of `tokens` tokens."""
    return str(tokens * load_model_config(folder).cache_group(element_bytes=4).bytes_per_token)


def _greedy(n: int = 1) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True, n=n)


def _kv_state(llm: LLM) -> scheduler_pb2.GetKvCacheStateResponse:
    with inspect_scheduler(llm.scheduler_address) as scheduler:
        return scheduler.GetKvCacheState(scheduler_pb2.GetKvCacheStateRequest(), timeout=10)


def _records(llm: LLM) -> list[scheduler_pb2.StepRecord]:
    with inspect_scheduler(llm.scheduler_address) as scheduler:
        response = scheduler.ListStepRecords(scheduler_pb2.ListStepRecordsRequest(), timeout=10)
        return list(response.records)


def _assert_equal(outputs, cases):
    for output, case in zip(outputs, cases, strict=True):
        for completion in output.outputs:
            assert completion.token_ids == case.output, f"a prompt of {len(case.prompt)} tokens"
            assert completion.finish_reason == "length"


def _assert_overlapped(records):
    """The plan of step n+1 was on its way before the result of step n arrived."""
    overlapped = [later.plan_sent_ns < earlier.result_received_ns for earlier, later in pairwise(records)]
    assert all(overlapped)
    assert len(overlapped) >= MAX_TOKENS - 1


def test_alone_together_and_forked(model):
    """With room for everything: one request, 32 at once, and n = 4 on one prompt; caching on."""
    folder, cases = model
    prompts = [case.prompt for case in cases]
    with LLM(folder, dtype="float32", **COMFORTABLE) as llm:
        _assert_equal(llm.generate(prompts[20], _greedy()), cases[20:21])
        _assert_overlapped(_records(llm))
        _assert_equal(llm.generate(prompts, _greedy()), cases)
        state = _kv_state(llm)
        assert state.num_preemptions == 0
        assert state.prefix_cache_hits > 0
        _assert_equal(llm.generate(prompts[28:30], _greedy(n=4)), cases[28:30])
        assert _kv_state(llm).num_copied_blocks > 0
        records = _records(llm)
        assert any(record.num_prefill_tokens > 0 and record.num_decode_tokens > 0 for record in records)
        assert _kv_state(llm).held_blocks == 0


@pytest.mark.parametrize("prefix_caching", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_cramped(model, prefix_caching):
    """32 at once in tiny chunks and a pool so small that sequences are preempted."""
    folder, cases = model
    prompts = [case.prompt for case in cases]
    settings = {**CRAMPED, "kv_cache_memory": _pool_for(folder, 272), "enable_prefix_caching": prefix_caching}
    with LLM(folder, dtype="float32", **settings) as llm:
        _assert_equal(llm.generate(prompts, _greedy()), cases)
        state = _kv_state(llm)
        assert state.num_preemptions > 0
        assert (state.prefix_cache_hits > 0) == prefix_caching
        assert state.held_blocks == 0
        records = _records(llm)
        assert any(record.num_prefill_tokens > 1 and record.num_decode_tokens > 0 for record in records)
        assert all(record.num_prefill_tokens + record.num_decode_tokens <= 24 for record in records)
