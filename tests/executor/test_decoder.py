"""The forward pass against transformers: prefill, chunked prefill and decode, through the paged cache."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import load_reference, make_checkpoint
from support.step_driver import StepDriver, greedy, load, log_distribution, prompt_of

from quire import kernels
from quire.step_counters import StepCounters

VOCAB = 320
ORIGINAL = 32

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, one KV head per head": ("llama", {"num_key_value_heads": 4}),
    "llama, one KV head": ("llama", {"num_key_value_heads": 1}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, head_dim apart": ("llama", {"head_dim": 24}),
    "mistral": ("mistral", {}),
    "mistral, window": ("mistral", {"sliding_window": 11}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, window in some layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3, tied, biases": ("qwen3", {"tie_word_embeddings": True, "attention_bias": True}),
    "qwen3, window by layer": (
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 9,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    ),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
    "dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}),
    "llama3": (
        "llama",
        {
            "max_position_embeddings": 4 * ORIGINAL,
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": ORIGINAL,
            },
        },
    ),
    "yarn": ("qwen2", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}),
    "yarn, mscale": (
        "qwen3",
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.8, "mscale_all_dim": 0.4}},
    ),
}


def reference_logprobs(model: Any, prompt: list[int], output: list[int]) -> np.ndarray:
    """[len(output), vocab] of the steps that gave `output`: the prompt in one piece, then token by token."""
    logits, cache, ids = [], None, prompt
    with torch.no_grad():
        for token in output:
            computed = model(torch.tensor([ids]), past_key_values=cache, use_cache=True)
            cache, ids = computed.past_key_values, [token]
            logits.append(computed.logits[0, -1].double())
    return torch.log_softmax(torch.stack(logits), dim=-1).numpy()


def our_logprobs(driver: StepDriver, prompt: list[int], count: int, chunk: int) -> tuple[list[int], np.ndarray]:
    """Tokens and log-distributions of `count` greedy steps after a prompt in chunks."""
    slot = driver.add(prompt, greedy(logprobs=VOCAB))
    planned = driver.sequences[slot]
    rows = []
    while len(planned.output) < count:
        result = driver.run({slot: min(chunk, planned.num_tokens - planned.computed)})
        if result.logprobs:
            rows.append(log_distribution(result, 0, VOCAB))
    return planned.output, np.stack(rows)


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_tokens_equal_those_of_transformers(tmp_path: Path, name: str) -> None:
    architecture, overrides = MODELS[name]
    if "rope_parameters" in overrides:
        overrides = {"max_position_embeddings": ORIGINAL, **overrides}
    folder = make_checkpoint(tmp_path / "model", architecture, **overrides)
    driver = StepDriver(load(folder), tmp_path)
    prompt = prompt_of(3 * ORIGINAL + 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own, about scaling beyond what the config says
        model = load_reference(folder)

    output, logprobs = our_logprobs(driver, prompt, 12, chunk=10_000)
    expected = reference_logprobs(model, prompt, output)
    margins = np.diff(np.sort(expected)[:, -2:])[:, 0]
    assert margins.min() > 1e-3
    assert output == expected.argmax(axis=-1).tolist()
    np.testing.assert_allclose(logprobs, expected, rtol=0, atol=1e-4)

    for chunk in (1, 7, 16):
        chunked_output, chunked = our_logprobs(driver, prompt, 4, chunk)
        assert chunked_output == output[:4]
        np.testing.assert_allclose(chunked, expected[:4], rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_bfloat16_is_close(tmp_path: Path, architecture: str) -> None:
    folder = make_checkpoint(tmp_path / "model", architecture, dtype=torch.bfloat16)
    driver = StepDriver(load(folder), tmp_path)
    prompt = prompt_of(50)
    output, logprobs = our_logprobs(driver, prompt, 8, chunk=20)
    exact = reference_logprobs(load_reference(folder, torch.float32), prompt, output)
    theirs = reference_logprobs(load_reference(folder, torch.bfloat16), prompt, output)
    # As far from exact arithmetic as transformers is, give or take.
    assert np.abs(logprobs - exact).mean() < 1.5 * np.abs(theirs - exact).mean() + 1e-3


@pytest.fixture
def torch_kernels() -> Iterator[None]:
    """What a GPU runs."""
    kernels.set_implementation("torch")
    yield
    kernels.set_implementation(None)


@pytest.mark.usefixtures("torch_kernels")
def test_the_torch_kernels_give_the_same(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "mistral", sliding_window=11)
    driver = StepDriver(load(folder), tmp_path)
    prompt = prompt_of(60)
    output, logprobs = our_logprobs(driver, prompt, 5, chunk=25)
    expected = reference_logprobs(load_reference(folder), prompt, output)
    np.testing.assert_allclose(logprobs, expected, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("torch_kernels")
def test_layers_in_torch_are_counted_as_those_of_the_native_step(tmp_path: Path) -> None:
    driver = StepDriver(load(make_checkpoint(tmp_path / "model", "llama")), tmp_path)
    counters = StepCounters.private()
    driver.runner.execute(driver.plan({driver.add(prompt_of(9)): 9}), counters)
    assert counters.layers_computed == driver.runner.model.config.num_layers == 3


def test_a_mixed_step_gives_each_sequence_its_own_result(tmp_path: Path) -> None:
    """Decodes, a whole prompt and a chunk of one in a single forward pass."""
    folder = make_checkpoint(tmp_path / "model", "llama")
    model = load(folder)
    prompts = [prompt_of(length, seed=length) for length in (1, 16, 33, 90, 5)]
    alone = []
    for prompt in prompts:
        driver = StepDriver(model, tmp_path)
        alone.append(driver.generate(driver.add(prompt), 6))

    driver = StepDriver(model, tmp_path)
    slots = [driver.add(prompt) for prompt in prompts]
    driver.run({slots[0]: 1, slots[1]: 16, slots[3]: 30})
    driver.run({slots[1]: 1, slots[3]: 40, slots[0]: 1, slots[2]: 33})
    while any(len(driver.sequences[slot].output) < 6 for slot in slots):
        members = [slot for slot in reversed(slots) if len(driver.sequences[slot].output) < 6]
        waiting = {slot: driver.sequences[slot].num_tokens - driver.sequences[slot].computed for slot in members}
        driver.run(waiting)
    assert [driver.sequences[slot].output for slot in slots] == alone


def test_a_later_row_reads_blocks_that_an_earlier_one_fills_in_the_same_step(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama")
    model = load(folder)
    prompt = prompt_of(40)
    driver = StepDriver(model, tmp_path)
    expected = driver.generate(driver.add(prompt), 3)

    driver = StepDriver(model, tmp_path)
    first, second = driver.add(prompt), driver.add(prompt)
    driver.reserve(first, 40)
    driver.share(first, second, 2)
    driver.run({first: 40, second: 8})
    assert driver.sequences[first].output == driver.sequences[second].output == expected[:1]
    assert driver.generate(second, 3) == expected
