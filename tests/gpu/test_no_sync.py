"""A step waits for nothing on the host: torch itself refuses whatever would synchronise while steps are launched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from support.checkpoints import make_checkpoint
from support.step_driver import EPOCH, StepPlanner, greedy, load, prompt_of

from quire.columns import unpack_u32
from quire.executor.kv_cache import KvCache
from quire.executor.model import Model
from quire.executor.model_runner import ModelRunner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

BLOCK_SIZE = 16
SAMPLED = {"temperature": 0.8, "top_p": 0.9, "top_k": 20, "seed": 1, "logprobs": 2}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(make_checkpoint(tmp_path_factory.mktemp("model"), "qwen3"), device="cuda", dtype=request.param)


@pytest.fixture
def runner(model: Model) -> Iterator[ModelRunner]:
    runner = ModelRunner(model, graph_sizes=(1, 2, 4))
    cache = KvCache.allocate(256, BLOCK_SIZE, model.cache_group, model.kv_cache_dtype, model.device)
    runner.adopt(cache, EPOCH)
    yield runner
    runner.close()


@contextmanager
def no_synchronisation() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _generate(runner: ModelRunner, *, watched: bool) -> list[list[int]]:
    """Chunks of prompts beside decodes, then decodes alone, with two steps in flight; the tokens by step."""
    planner = StepPlanner(BLOCK_SIZE)
    first, second = planner.add(prompt_of(40)), planner.add(prompt_of(70, 1), greedy(**SAMPLED))
    rows = [{first: 40, second: 30}, {first: 1, second: 40}, *[{first: 1, second: 1}] * 12]
    steps, tokens = [], []
    for row in rows:
        plan = planner.plan(row)
        if watched:
            with no_synchronisation():
                steps.append(runner.launch(plan))
        else:
            steps.append(runner.launch(plan))
        if len(steps) == runner.max_in_flight:
            tokens.append(unpack_u32(steps.pop(0).result().token_ids))
        runner.use_pause(idle=not watched)
    tokens += [unpack_u32(step.result().token_ids) for step in steps]
    planner.finish(first)
    planner.finish(second)
    runner.execute(planner.plan({}))
    return tokens


def test_launching_a_step_does_not_wait(runner: ModelRunner) -> None:
    """Kernels are compiled, libraries loaded and buffers grown in the first round."""
    warm = _generate(runner, watched=False)
    assert _generate(runner, watched=True) == warm


def test_a_step_is_launched_while_the_one_before_it_runs(runner: ModelRunner) -> None:
    """The device sleeps for a second before the first step: the second one is launched meanwhile."""
    _generate(runner, watched=False)
    planner = StepPlanner(BLOCK_SIZE)
    slot = planner.add(prompt_of(40))
    # Through the runner's own stream, as its steps are.
    assert runner._device is not None
    runner._device.submit(lambda: torch.cuda._sleep(2_000_000_000))
    steps = [runner.launch(planner.plan({slot: 40})), runner.launch(planner.plan({slot: 1}))]
    assert not steps[0].is_done
    assert runner.sequences.num_unknown[slot] == 2
    assert all(len(step.result().token_ids) == 4 for step in steps)
