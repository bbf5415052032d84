"""Shapes of models, and random weights for them, made on the device: nothing is fetched."""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quire.executor.checkpoint import Checkpoint

_LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
_QWEN3_06B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
    "rope_theta": 1000000.0,
}
_TINY: dict[str, Any] = {
    **_QWEN3_06B,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 256,
    "max_position_embeddings": 256,
}
_COMMON: dict[str, Any] = {"hidden_act": "silu", "attention_bias": False, "bos_token_id": None, "eos_token_id": None}


@dataclass(frozen=True)
class Shape:
    """A model's name and its config.json."""

    name: str
    config: dict[str, Any]

    @property
    def matrix_parameters(self) -> int:
        """Weights that every token is multiplied with: all matrices of the layers, not the vocabulary's."""
        config = self.config
        hidden, heads = config["hidden_size"], config["num_attention_heads"] * config["head_dim"]
        kv_heads = config["num_key_value_heads"] * config["head_dim"]
        layer = hidden * (2 * heads + 2 * kv_heads) + 3 * hidden * config["intermediate_size"]
        return config["num_hidden_layers"] * layer

    def write(self, folder: Path, dtype: torch.dtype) -> Path:
        """Writes config.json into a folder of its own, and returns that."""
        path = folder / self.name
        path.mkdir(exist_ok=True)
        values = {**_COMMON, **self.config, "dtype": str(dtype).removeprefix("torch.")}
        (path / "config.json").write_text(json.dumps(values))
        return path


SHAPES = (Shape("Llama-3.1-8B", _LLAMA_8B), Shape("Qwen3-0.6B", _QWEN3_06B))
TINY = Shape("tiny", _TINY)


class RandomCheckpoint(Checkpoint):
    """Tensors of any name and shape, the same for the same name: normal with a deviation of 0.02, norms 1."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device

    def __contains__(self, name: str) -> bool:
        return True

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            return torch.ones(shape, dtype=self._dtype, device=self._device)
        generator = torch.Generator(self._device).manual_seed(zlib.crc32(name.encode()))
        values = torch.empty(shape, dtype=self._dtype, device=self._device)
        return values.normal_(0.0, 0.02, generator=generator)

    def identity(self) -> str:
        return "random"

    def close(self) -> None:
        """Nothing is open."""
