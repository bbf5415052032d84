"""Whole steps with Triton's kernels: staged, launched ahead, padded, sampled on the device; tokens as transformers'."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.checkpoints import load_reference, make_checkpoint
from support.reference import greedy
from support.step_driver import EPOCH, StepPlanner, load, prompt_of
from support.thread_device import ThreadDevice

from quire.executor.device import AsyncDevice, async_device
from quire.executor.kv_cache import KvCache
from quire.executor.model import Model
from quire.executor.model_runner import ModelRunner

# In the interpreter numpy warns of what is no error on a GPU: of infinities and their differences.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

BLOCK_SIZE, NUM_BLOCKS = 4, 16
PROMPTS = [prompt_of(length, seed=length) for length in (9, 3, 5)]
MAX_TOKENS = 4
# Rows by slot of each step. Prompts in chunks, decodes beside them, and decodes alone, which graphs are made for.
PLANS = ({0: 6, 1: 3}, {0: 3, 1: 1, 2: 2}, {0: 1, 1: 1, 2: 3}, {0: 1, 1: 1, 2: 1}, {0: 1, 2: 1}, {2: 1})


@pytest.fixture
def steps_device(device: torch.device) -> Iterator[AsyncDevice]:
    """A GPU's stream, or one in miniature."""
    found = async_device(device) or ThreadDevice()
    yield found
    found.close()


def _tokens(model: Model, device: AsyncDevice, graph_sizes: tuple[int, ...]) -> list[list[int]]:
    """What is sampled when each step is launched before the result of the one before it is looked at."""
    runner = ModelRunner(model, device=device, graph_sizes=graph_sizes)
    cache = KvCache.allocate(NUM_BLOCKS, BLOCK_SIZE, model.cache_group, model.kv_cache_dtype, model.device)
    runner.adopt(cache, EPOCH)
    planner = StepPlanner(BLOCK_SIZE)
    for prompt in PROMPTS:
        planner.add(prompt)
    in_flight = deque()
    for rows in PLANS:
        if len(in_flight) == runner.max_in_flight:
            planner.accept(in_flight.popleft().result())
        in_flight.append(runner.launch(planner.plan(rows)))
        runner.use_pause(idle=True)
    while in_flight:
        planner.accept(in_flight.popleft().result())
    runner.detach()
    return [sequence.output for sequence in planner.sequences.values()]


@pytest.mark.parametrize("graph_sizes", [(), (4,)], ids=["eager", "graphs"])
def test_tokens_are_those_of_transformers(tmp_path: Path, device, steps_device, graph_sizes: tuple[int, ...]) -> None:
    sizes = {"num_hidden_layers": 2, "max_position_embeddings": 64, "vocab_size": 320}
    folder = make_checkpoint(tmp_path / "model", "qwen3", **sizes)
    reference = load_reference(folder)
    expected = [greedy(reference, prompt, MAX_TOKENS)[0] for prompt in PROMPTS]
    model = load(folder, device=device.type, dtype="float32")
    assert _tokens(model, steps_device, graph_sizes) == expected
    if isinstance(steps_device, ThreadDevice):
        assert (steps_device.num_replays > 0) == bool(graph_sizes)
