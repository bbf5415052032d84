"""Whole servers on a GPU: transformers' tokens in float32, the same with every neighbour, and through a death."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from support.checkpoints import load_reference, make_checkpoint
from support.reference import Case, greedy_cases
from support.servers import inspect_scheduler, wait_for

from quire import LLM, SamplingParams
from quire.config import BUNDLED_MODEL
from quire.internal.v1 import scheduler_pb2

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

MAX_TOKENS = 20
LENGTHS = [1, 2, 5, 15, 16, 17, 33, 48, 49, 64, 65, 97, 100, 128, 129, 160, 170]
SHAPES = {
    "llama": ("llama", {}),
    "mistral-sliding-window": ("mistral", {"sliding_window": 24}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
}
SETTINGS = {"device": "cuda", "dtype": "float32", "kv_cache_memory": "64MiB"}


@pytest.fixture(scope="module", params=[*SHAPES, "bundled"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Case]]:
    """A checkpoint, and continuations by transformers on the CPU."""
    if request.param == "bundled":
        folder, vocab_size = BUNDLED_MODEL, 2048
    else:
        architecture, overrides = SHAPES[request.param]
        folder, vocab_size = make_checkpoint(tmp_path_factory.mktemp("model"), architecture, **overrides), 320
    return folder, greedy_cases(load_reference(folder), LENGTHS, MAX_TOKENS, seed=7, vocab_size=vocab_size, shared=20)


def _greedy(n: int = 1) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True, n=n)


def _kv_state(llm: LLM) -> scheduler_pb2.GetKvCacheStateResponse:
    with inspect_scheduler(llm.scheduler_address) as scheduler:
        return scheduler.GetKvCacheState(scheduler_pb2.GetKvCacheStateRequest(), timeout=10)


@pytest.mark.parametrize("enforce_eager", [False, True])
def test_tokens_are_those_of_transformers(model: tuple[Path, list[Case]], enforce_eager: bool) -> None:
    """Twice, so that the second time decode steps are replayed from graphs."""
    folder, cases = model
    with LLM(folder, enforce_eager=enforce_eager, **SETTINGS) as llm:
        for _ in range(2):
            outputs = llm.generate([case.prompt for case in cases], _greedy())
            assert [output.outputs[0].token_ids for output in outputs] == [case.output for case in cases]
        forked = llm.generate(cases[3].prompt, _greedy(n=4))[0]
        assert [completion.token_ids for completion in forked.outputs] == [cases[3].output] * 4
        assert _kv_state(llm).held_blocks == 0


def test_tokens_are_the_same_in_small_chunks(model: tuple[Path, list[Case]]) -> None:
    folder, cases = model
    with LLM(folder, max_num_batched_tokens=24, max_num_seqs=8, max_model_len=200, **SETTINGS) as llm:
        outputs = llm.generate([case.prompt for case in cases], _greedy())
        assert [output.outputs[0].token_ids for output in outputs] == [case.output for case in cases]


@pytest.fixture(scope="module")
def bundled() -> Iterator[LLM]:
    with LLM(device="cuda", dtype="bfloat16", kv_cache_memory="64MiB") as llm:
        yield llm


def _seeded(seed: int, max_tokens: int = 40) -> SamplingParams:
    return SamplingParams(temperature=1.0, top_p=0.95, seed=seed, max_tokens=max_tokens, ignore_eos=True)


def test_a_seed_gives_the_same_alone_and_in_a_crowd(bundled: LLM) -> None:
    prompts = [list(range(1, length)) for length in range(2, 34)]
    alone = [bundled.generate(prompt, _seeded(seed))[0].outputs[0].token_ids for seed, prompt in enumerate(prompts[:6])]
    crowd = bundled.generate(prompts, [_seeded(seed) for seed in range(len(prompts))])
    assert [output.outputs[0].token_ids for output in crowd[:6]] == alone


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_an_executor_that_dies_or_hangs_loses_no_token(bundled: LLM, number: signal.Signals) -> None:
    prompts = [list(range(1, length)) for length in range(20, 28)]
    params = [_seeded(seed, max_tokens=300) for seed in range(len(prompts))]
    undisturbed = [output.outputs[0].token_ids for output in bundled.generate(prompts, params)]
    lost, old = _kv_state(bundled).num_lost_executors, _executor()

    def strike() -> None:
        wait_for(lambda: len(_kv_state(bundled).sequences) == len(prompts))
        os.kill(old.pid, number)

    striking = threading.Thread(target=strike)
    striking.start()
    outputs = bundled.generate(prompts, params)
    striking.join(60)
    assert [output.outputs[0].token_ids for output in outputs] == undisturbed
    assert _kv_state(bundled).num_lost_executors == lost + 1
    assert _executor() != old


def _executor() -> psutil.Process:
    """The one executor among this process's children."""
    (executor,) = [
        process
        for process in psutil.Process().children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE and "executor" in process.cmdline()
    ]
    return executor
