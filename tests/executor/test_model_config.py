"""config.json: what it means, and how it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quire.errors import CheckpointError
from quire.executor.model_config import ModelConfig, load_model_config
from quire.executor.rotary import RotaryType

QWEN3_0_6B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 2048,
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "vocab_size": 100,
}


def parse(folder: Path, values: object) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(values))
    return load_model_config(folder)


def test_qwen3_takes_112_kib_of_kv_per_token_in_bfloat16(tmp_path: Path) -> None:
    config = parse(tmp_path, QWEN3_0_6B)
    assert config.cache_group(2).bytes_per_token == 112 * 1024
    assert config.dtype == "bfloat16"
    assert config.qk_norm and not config.qkv_bias and config.tie_word_embeddings
    assert config.rotary.base == 1_000_000
    assert config.max_model_len == 40960


def test_defaults(tmp_path: Path) -> None:
    config = parse(tmp_path, LLAMA)
    assert (config.num_kv_heads, config.head_dim, config.rms_norm_eps) == (4, 16, 1e-6)
    assert not (config.qkv_bias or config.output_bias or config.mlp_bias or config.tie_word_embeddings)
    assert config.rotary.type is RotaryType.DEFAULT and config.rotary.base == 10_000
    assert config.sliding_windows == (None,) * 6
    assert config.dtype is None


@pytest.mark.parametrize(
    ("architecture", "values", "expected"),
    [
        ("Mistral", {"sliding_window": 32}, (32,) * 6),
        ("Mistral", {"sliding_window": None}, (None,) * 6),
        ("Mistral", {}, (4096,) * 6),
        ("Llama", {"sliding_window": 32}, (None,) * 6),
        ("Qwen2", {"sliding_window": 32, "max_window_layers": 4}, (None,) * 6),
        (
            "Qwen2",
            {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 4},
            (None,) * 4 + (32,) * 2,
        ),
        (
            "Qwen3",
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention"] * 3,
            },
            (8, None) * 3,
        ),
    ],
)
def test_sliding_windows(
    tmp_path: Path, architecture: str, values: dict[str, Any], expected: tuple[int | None, ...]
) -> None:
    config = parse(tmp_path, {**LLAMA, "architectures": [f"{architecture}ForCausalLM"], **values})
    assert config.sliding_windows == expected


@pytest.mark.parametrize(
    "written",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 4}},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}},
    ],
)
def test_old_and_new_rotary_keys_mean_the_same(tmp_path: Path, written: dict[str, Any]) -> None:
    config = parse(tmp_path, {**LLAMA, **written})
    assert config.rotary.type is RotaryType.LINEAR
    assert (config.rotary.factor, config.rotary.base) == (4.0, 5e5)
    assert config.max_model_len == 8192


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "default"}, 2048),
        ({"rope_type": "dynamic", "factor": 2.0}, 4096),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"rope_type": "yarn", "factor": 4.0}, 8192),
        ({"rope_type": "yarn", "original_max_position_embeddings": 512}, 2048),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 256,
            },
            2048,
        ),
    ],
)
def test_longest_context(tmp_path: Path, rope: dict[str, Any], expected: int) -> None:
    assert parse(tmp_path, {**LLAMA, "rope_scaling": rope}).max_model_len == expected


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures"),
        ({"architectures": None}, "architectures"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 15}, "head_dim"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope_scaling.rope_type"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
        ({"rope_scaling": ["linear"]}, "rope_scaling"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}},
            "rope_scaling.high_freq_factor",
        ),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "use_sliding_window": True,
                "layer_types": ["chunked_attention"] * 6,
            },
            "layer_types",
        ),
    ],
)
def test_errors_name_file_and_key(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse(tmp_path, {**LLAMA, **changes})
    assert f"{tmp_path}/config.json: {key} " in caught.value.message


@pytest.mark.parametrize("content", [None, "{", "[]", b"\xff\xfe"])
def test_unreadable_files_are_named(tmp_path: Path, content: str | bytes | None) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=str(path)):
        load_model_config(tmp_path)
