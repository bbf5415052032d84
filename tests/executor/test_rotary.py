"""Angles against transformers' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from quire.executor.model_config import load_model_config
from quire.executor.rotary import RotaryConfig, RotaryEmbedding, RotaryTable, RotaryType

ORIGINAL = 64

SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.3},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0},
    "yarn of another original": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn with betas": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn with mscale": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.707, "mscale_all_dim": 1.0},
    "yarn with attention factor": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.5},
    "yarn without truncation": {"rope_type": "yarn", "factor": 4.0, "truncate": False},
}


def both(folder: Path, rope: dict[str, Any]) -> tuple[RotaryEmbedding, LlamaRotaryEmbedding]:
    values = {
        "hidden_size": 128,
        "num_attention_heads": 4,
        "max_position_embeddings": ORIGINAL,
        "rope_parameters": {"rope_theta": 5e4, **rope},
    }
    config = transformers.LlamaConfig(**values)
    path = folder / "config.json"
    path.write_text(json.dumps({**config.to_dict(), "architectures": ["LlamaForCausalLM"]}))
    ours = RotaryEmbedding(load_model_config(folder).rotary, 32, torch.device("cpu"))
    return ours, LlamaRotaryEmbedding(config)


@pytest.mark.parametrize("name", SCALINGS)
def test_angles_equal_those_of_transformers(tmp_path: Path, name: str) -> None:
    """A prompt beyond the original context, then tokens one by one."""
    ours, theirs = both(tmp_path, SCALINGS[name])
    prompt_len = 3 * ORIGINAL
    for positions in (torch.arange(prompt_len), torch.tensor([prompt_len]), torch.tensor([prompt_len + 1])):
        lengths = (positions + 1).clamp(min=prompt_len) if ours.needs_lengths else None
        cos, sin = ours.cos_sin(positions, lengths)
        expected_cos, expected_sin = theirs(torch.zeros(1), positions[None])
        torch.testing.assert_close(cos, expected_cos[0, :, :16], rtol=0, atol=2e-6)
        torch.testing.assert_close(sin, expected_sin[0, :, :16], rtol=0, atol=2e-6)


def test_dynamic_prompts_within_the_original_context_are_not_scaled(tmp_path: Path) -> None:
    dynamic, _ = both(tmp_path, SCALINGS["dynamic"])
    default, _ = both(tmp_path, SCALINGS["default"])
    positions = torch.arange(ORIGINAL)
    scaled = dynamic.cos_sin(positions, torch.full_like(positions, ORIGINAL))
    assert all(map(torch.equal, scaled, default.cos_sin(positions)))


@pytest.mark.parametrize("name", ["default", "dynamic", "yarn"])
def test_a_tokens_angles_do_not_depend_on_the_batch(tmp_path: Path, name: str) -> None:
    ours, _ = both(tmp_path, SCALINGS[name])
    positions = torch.arange(300)
    lengths = positions + 1 if ours.needs_lengths else None
    cos, sin = ours.cos_sin(positions, lengths)
    for start, end in ((0, 1), (7, 8), (3, 20), (299, 300)):
        part = ours.cos_sin(positions[start:end], None if lengths is None else lengths[start:end])
        assert torch.equal(part[0], cos[start:end]) and torch.equal(part[1], sin[start:end])


def test_only_dynamic_scaling_depends_on_the_length() -> None:
    assert RotaryConfig(RotaryType.DYNAMIC, 1e4, 2.0, 64).length_independent_tokens == 64
    assert RotaryConfig(RotaryType.YARN, 1e4, 2.0, 64).length_independent_tokens is None


@pytest.mark.parametrize("name", SCALINGS)
def test_the_table_holds_the_same_angles(tmp_path: Path, name: str) -> None:
    ours, _ = both(tmp_path, SCALINGS[name])
    table = RotaryTable(load_model_config(tmp_path).rotary, 32)
    for positions in ([5], [0, 3, 2, 2], [9000, 1], [2047, 2048, 4096], [0]):
        array = np.array(positions, np.int32)
        lengths = array + np.int32(1) if table.needs_lengths else None
        cos, sin = table.cos_sin(array, lengths)
        wanted = ours.cos_sin(torch.from_numpy(array), None if lengths is None else torch.from_numpy(lengths))
        assert cos.flags.c_contiguous and sin.flags.c_contiguous
        np.testing.assert_array_equal(cos, wanted[0].numpy())
        np.testing.assert_array_equal(sin, wanted[1].numpy())


@pytest.mark.parametrize("name", SCALINGS)
def test_looked_up_on_the_device_they_are_the_same(tmp_path: Path, name: str) -> None:
    computed, _ = both(tmp_path, SCALINGS[name])
    looked_up, _ = both(tmp_path, SCALINGS[name])
    looked_up.tabulate(300)
    for positions in (torch.tensor([299, 0, 7, 7]), torch.tensor([64], dtype=torch.int32)):
        lengths = positions + 1 if computed.needs_lengths else None
        for ours, wanted in zip(
            looked_up.cos_sin(positions, lengths), computed.cos_sin(positions, lengths), strict=True
        ):
            assert ours.is_contiguous()
            torch.testing.assert_close(ours, wanted, rtol=0, atol=2e-7)


def test_a_table_that_would_take_too_much_memory_is_not_made(tmp_path: Path) -> None:
    ours, _ = both(tmp_path, SCALINGS["default"])
    ours.tabulate(2**40)
    cos, _ = ours.cos_sin(torch.tensor([2**20]))
    assert cos.shape == (1, 16)
