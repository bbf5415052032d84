"""CUDA graphs replay what eager steps compute, bit for bit, at every size; captured while steps run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.checkpoints import make_checkpoint
from support.step_driver import EPOCH, StepPlanner, greedy, load, prompt_of

from quire import LLM, SamplingParams
from quire.executor.device import async_device
from quire.executor.kv_cache import KvCache
from quire.executor.model import Model
from quire.executor.model_runner import ModelRunner
from quire.internal.v1 import executor_pb2

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

SIZES = (1, 2, 4, 8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(make_checkpoint(tmp_path_factory.mktemp("model"), "llama"), device="cuda", dtype="bfloat16")


def _runner(model: Model, sizes: tuple[int, ...]) -> ModelRunner:
    runner = ModelRunner(model, device=async_device(model.device), graph_sizes=sizes)
    runner.adopt(KvCache.allocate(256, 16, model.cache_group, model.kv_cache_dtype, model.device), EPOCH)
    return runner


def _decode(runner: ModelRunner, num_rows: int, steps: int = 6) -> list[executor_pb2.StepResult]:
    """Prefills and decodes some sequences of different lengths, one step behind the other."""
    planner = StepPlanner()
    params = greedy(logprobs=8)
    slots = [planner.add(prompt_of(5 + 9 * row, seed=row), params) for row in range(num_rows)]
    plans = [planner.plan({slot: planner.sequences[slot].num_tokens for slot in slots})]
    plans += [planner.plan(dict.fromkeys(slots, 1)) for _ in range(steps)]
    pending = [runner.launch(plan) for plan in plans]
    return [step.result() for step in pending]


def _content(results: list[executor_pb2.StepResult]) -> list[tuple[bytes, bytes, list[bytes]]]:
    """All that the model decides, the logprobs' bits included."""
    return [(r.slots, r.token_ids, [row.SerializeToString() for row in r.logprobs]) for r in results]


@pytest.mark.parametrize("num_rows", range(1, 9))
def test_a_replay_is_equal_to_an_eager_step(model: Model, num_rows: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    expected = _content(_decode(_runner(model, ()), num_rows))
    runner = _runner(model, SIZES)
    assert _content(_decode(runner, num_rows)) == expected, "nothing is captured yet"
    captured = 0
    while runner.use_pause(idle=True):
        captured += 1
    assert captured == (1 if num_rows > 4 else 2), "the largest, and the one that was asked for"
    assert caplog.text.count("captured decode steps of") == captured, caplog.text
    assert _content(_decode(runner, num_rows)) == expected
    runner.detach()


def test_sizes_are_captured_between_steps_and_change_nothing(model: Model) -> None:
    expected = {rows: _content(_decode(_runner(model, ()), rows, 40)) for rows in (1, 3, 8)}
    runner = _runner(model, SIZES)
    for _ in range(3):
        for rows, content in expected.items():
            assert _content(_decode(runner, rows, 40)) == content
            runner.use_pause(idle=False)
    runner.detach()


def test_a_new_pool_drops_the_graphs_of_the_old_one(model: Model) -> None:
    expected = _content(_decode(_runner(model, ()), 2))
    runner = _runner(model, SIZES)
    for _ in range(3):
        _decode(runner, 2)
        while runner.use_pause(idle=True):
            pass
        assert _content(_decode(runner, 2)) == expected
        runner.detach()
        runner.adopt(KvCache.allocate(300, 16, model.cache_group, model.kv_cache_dtype, model.device), EPOCH)


@pytest.mark.parametrize("eager", [False, True])
def test_under_a_server(tmp_path: Path, eager: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """Texts do not change while graphs are captured."""
    params = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
    prompts = [prompt_of(10 + 7 * row, seed=row) for row in range(6)]
    settings = {"device": "cuda", "dtype": "bfloat16", "kv_cache_memory": "64MiB", "max_num_seqs": 8}
    with LLM(**settings, enforce_eager=eager, log_level="info") as llm:
        rounds = [[output.outputs[0].token_ids for output in llm.generate(prompts, params)] for _ in range(4)]
        alone = [llm.generate(prompt, params)[0].outputs[0].token_ids for prompt in prompts]
    assert all(tokens == alone for tokens in rounds)
    log = capfd.readouterr().err
    assert ("captured decode steps of 8 sequences" in log) == (not eager), log
    assert "stay eager" not in log, log
