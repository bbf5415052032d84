"""Beam search equals transformers' token for token, alone, in company, and when its beams lose their blocks."""

from __future__ import annotations

import pytest
import torch
from support.beam_reference import beam_cases
from support.checkpoints import load_reference, make_checkpoint
from support.servers import inspect_scheduler

from quire import LLM, SamplingParams
from quire.config import BUNDLED_MODEL
from quire.executor.model_config import load_model_config
from quire.internal.v1 import scheduler_pb2

SHAPES = {
    "llama": {},
    "mistral": {"sliding_window": 24},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
}

SEARCHES = [
    {"length": 1, "ends": 0},
    {"length": 5, "ends": 1, "best_of": 2, "n": 1},
    {"length": 7, "ends": 1, "best_of": 2, "max_tokens": 1},
    {"length": 16, "ends": 2, "best_of": 4, "n": 4, "max_tokens": 20},
    {"length": 17, "ends": 3, "best_of": 4, "n": 3, "max_tokens": 16, "early_stopping": True},
    {"length": 31, "ends": 2, "best_of": 3, "max_tokens": 24, "early_stopping": "never", "length_penalty": 2.0},
    {"length": 33, "ends": 1, "best_of": 5, "n": 5, "max_tokens": 20, "length_penalty": 0.0},
    {"length": 40, "ends": 3, "best_of": 2, "max_tokens": 12, "length_penalty": -1.0, "early_stopping": "never"},
    {"length": 12, "ends": 3, "best_of": 4, "max_tokens": 18, "min_tokens": 6},
    {"length": 48, "ends": 2, "best_of": 6, "n": 6, "max_tokens": 10, "length_penalty": 0.5, "early_stopping": True},
    {"length": 44, "ends": 0, "best_of": 4, "n": 2, "max_tokens": 28},
]


# One of them in the everyday tests.
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in [*list(SHAPES)[1:], "bundled"]]


@pytest.fixture(scope="module", params=[next(iter(SHAPES)), *OTHERS])
def model(request, tmp_path_factory):
    """A checkpoint, and what transformers finds for all SEARCHES."""
    if request.param == "bundled":
        folder, vocab_size = BUNDLED_MODEL, 2048
    else:
        folder = make_checkpoint(tmp_path_factory.mktemp(request.param), request.param, **SHAPES[request.param])
        vocab_size = 320
    reference, exact = load_reference(folder), load_reference(folder, torch.float64)
    return folder, beam_cases(reference, exact, SEARCHES, seed=3, vocab_size=vocab_size)


def _kv_state(llm: LLM) -> scheduler_pb2.GetKvCacheStateResponse:
    with inspect_scheduler(llm.scheduler_address) as scheduler:
        return scheduler.GetKvCacheState(scheduler_pb2.GetKvCacheStateRequest(), timeout=10)


def _assert_equal(outputs, cases):
    for output, case in zip(outputs, cases, strict=True):
        assert [completion.token_ids for completion in output.outputs] == case.outputs, case.params
        assert [completion.cumulative_logprob for completion in output.outputs] == pytest.approx(
            case.logprobs, rel=1e-3, abs=1e-3
        )
        for completion in output.outputs:
            ended = completion.token_ids[-1] in case.params.stop_token_ids if case.params.stop_token_ids else False
            assert completion.finish_reason == ("stop" if ended else "length")


def test_alone_and_together(model):
    folder, cases = model
    with LLM(folder, dtype="float32", kv_cache_memory="16MiB", threads=1) as llm:
        for case in cases[:5]:
            _assert_equal(llm.generate(case.prompt, case.params), [case])
        greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
        alone = llm.generate([case.prompt for case in cases], greedy)
        prompts = [case.prompt for case in cases]
        outputs = llm.generate([*prompts, *prompts], [case.params for case in cases] + [greedy] * len(cases))
        _assert_equal(outputs[: len(cases)], cases)
        for output, expected in zip(outputs[len(cases) :], alone, strict=True):
            assert output.outputs[0].token_ids == expected.outputs[0].token_ids
        state = _kv_state(llm)
        assert state.num_copied_blocks > 0
        assert state.held_blocks == 0


@pytest.mark.parametrize("prefix_caching", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_cramped(model, prefix_caching):
    """Tiny chunks, and a pool that holds little more than one search: beams lose their blocks and find them again."""
    folder, cases = model
    bytes_per_token = load_model_config(folder).cache_group(element_bytes=4).bytes_per_token
    with LLM(
        folder,
        dtype="float32",
        threads=1,
        max_num_batched_tokens=7,
        max_num_seqs=32,
        max_model_len=128,
        block_size=4,
        kv_cache_memory=176 * bytes_per_token,
        enable_prefix_caching=prefix_caching,
    ) as llm:
        _assert_equal(llm.generate([case.prompt for case in cases], [case.params for case in cases]), cases)
        state = _kv_state(llm)
        assert state.num_preemptions > 0
        assert state.held_blocks == 0
