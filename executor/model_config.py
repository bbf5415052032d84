"""config.json of a Hugging Face checkpoint → ModelConfig, or a CheckpointError that names file and key.

Read without transformers: importing it costs seconds at every start, and what a decoder needs is little.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from quire.errors import CheckpointError
from quire.executor.rotary import RotaryConfig, RotaryType
from quire.kv_layout import CacheGroupLayout

ARCHITECTURES: Final = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a decoder. All sizes are counts of elements."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    # Per layer: a query sees this many of the latest tokens, itself included; None sees all.
    sliding_windows: tuple[int | None, ...]
    max_position_embeddings: int
    rotary: RotaryConfig
    # The checkpoint's own type ("float32", "bfloat16", "float16"), where config.json says so.
    dtype: str | None

    @property
    def max_model_len(self) -> int:
        """Tokens the model was made for, rotary scaling included (vLLM's rule).

        The factor multiplies the original maximum. That is max_position_embeddings for linear and dynamic
        scaling, a key of its own for yarn; llama3's max_position_embeddings is the stretched one.
        """
        match self.rotary.type:
            case RotaryType.LINEAR | RotaryType.DYNAMIC | RotaryType.YARN:
                return int(self.rotary.original_max_position_embeddings * self.rotary.factor)
            case RotaryType.DEFAULT | RotaryType.LLAMA3:
                return self.max_position_embeddings

    def cache_group(self, element_bytes: int, scale_bytes: int = 0) -> CacheGroupLayout:
        """The one cache group: layers with a sliding window keep their older blocks as well."""
        return CacheGroupLayout(self.num_layers, self.num_kv_heads, self.head_dim, element_bytes, scale_bytes)


def load_model_config(folder: Path) -> ModelConfig:
    """Reads `folder`/config.json. Raises CheckpointError for what is missing, wrong or unsupported."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist", field="model") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", field="model") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object", field="model")
    return _parse(_Keys(path, values))


class _Keys:
    """Typed access to the keys of a JSON object, where null means absent; errors name the file and the key.

    A reader without `default` requires its key.
    """

    def __init__(self, path: Path, values: Mapping[str, Any], prefix: str = "") -> None:
        self._path = path
        self._values = values
        self._prefix = prefix

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def has(self, key: str) -> bool:
        """Whether the key is there, be it null."""
        return key in self._values

    def fail(self, key: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: {self._prefix}{key} {problem}", field="model")

    def integer(self, key: str, default: int | None = None, minimum: int = 1) -> int:
        value = self._required(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.fail(key, f"must be an integer of at least {minimum}, not {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._required(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self.fail(key, f"must be a positive number, not {value!r}")
        return float(value)

    def optional_integer(self, key: str) -> int | None:
        return None if self.get(key) is None else self.integer(key)

    def optional_number(self, key: str) -> float | None:
        return None if self.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool) -> bool:
        value = self._required(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, f"must be true or false, not {value!r}")
        return value

    def inner(self, key: str) -> _Keys:
        """The keys of an object; absent means an empty one."""
        value = self._required(key, {})
        if not isinstance(value, dict):
            raise self.fail(key, f"must be an object, not {value!r}")
        return _Keys(self._path, value, f"{self._prefix}{key}.")

    def _required(self, key: str, default: object) -> Any:
        value = self.get(key)
        if value is None:
            value = default
        if value is None:
            raise self.fail(key, "is missing")
        return value


def _parse(keys: _Keys) -> ModelConfig:
    architecture = _architecture(keys)
    hidden_size, num_heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    num_kv_heads = keys.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise keys.fail("num_key_value_heads", f"({num_kv_heads}) must divide num_attention_heads ({num_heads})")
    # Qwen3's default is a number of its own: transformers never derives it there.
    head_dim = keys.integer("head_dim", 128 if architecture == "Qwen3ForCausalLM" else hidden_size // num_heads)
    if head_dim % 2:
        raise keys.fail("head_dim", f"must be even, not {head_dim}")
    num_layers = keys.integer("num_hidden_layers")
    max_position_embeddings = keys.integer("max_position_embeddings")
    biased = architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM") and keys.flag("attention_bias", False)
    return ModelConfig(
        architecture=architecture,
        vocab_size=keys.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=keys.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=keys.number("rms_norm_eps", 1e-6),
        tie_word_embeddings=keys.flag("tie_word_embeddings", False),
        qkv_bias=biased or architecture == "Qwen2ForCausalLM",
        output_bias=biased,
        mlp_bias=architecture == "LlamaForCausalLM" and keys.flag("mlp_bias", False),
        qk_norm=architecture == "Qwen3ForCausalLM",
        sliding_windows=_sliding_windows(keys, architecture, num_layers),
        max_position_embeddings=max_position_embeddings,
        rotary=_rotary(keys, max_position_embeddings),
        dtype=_dtype(keys),
    )


def _architecture(keys: _Keys) -> str:
    names = keys.get("architectures")
    if not isinstance(names, list) or not names:
        raise keys.fail("architectures", "must name the model's class")
    for name in names:
        if name in ARCHITECTURES:
            break
    else:
        raise keys.fail("architectures", f"{names} is not supported; supported are {', '.join(ARCHITECTURES)}")
    if keys.get("hidden_act") not in (None, "silu"):
        raise keys.fail("hidden_act", f"{keys.get('hidden_act')!r} is not supported, only 'silu' is")
    if keys.get("quantization_config") is not None:
        raise keys.fail("quantization_config", "is not supported: quantised checkpoints cannot be loaded")
    return str(name)


def _dtype(keys: _Keys) -> str | None:
    # transformers 5 writes "dtype", older versions "torch_dtype".
    name = keys.get("dtype") or keys.get("torch_dtype")
    return name.removeprefix("torch.") if isinstance(name, str) else None


def _sliding_windows(keys: _Keys, architecture: str, num_layers: int) -> tuple[int | None, ...]:
    if architecture == "MistralForCausalLM":
        # transformers' default for an absent key is a window of 4096; null means none.
        window = keys.optional_integer("sliding_window") if keys.has("sliding_window") else 4096
        return (window,) * num_layers
    if architecture == "LlamaForCausalLM" or not keys.flag("use_sliding_window", False):
        return (None,) * num_layers
    window = keys.integer("sliding_window", 4096)
    first = keys.integer("max_window_layers", 28, minimum=0)
    types = keys.get("layer_types") or [
        "sliding_attention" if layer >= first else "full_attention" for layer in range(num_layers)
    ]
    if not isinstance(types, list) or len(types) != num_layers:
        raise keys.fail("layer_types", f"must list {num_layers} layers")
    unknown = set(types) - {"sliding_attention", "full_attention"}
    if unknown:
        raise keys.fail("layer_types", f"has unsupported types: {sorted(map(str, unknown))}")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _rotary(keys: _Keys, max_position_embeddings: int) -> RotaryConfig:
    """`rope_scaling` beside `rope_theta` (transformers 4), or both in `rope_parameters` (5)."""
    name = "rope_scaling" if keys.get("rope_scaling") else "rope_parameters"
    rope = keys.inner(name)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    try:
        rotary_type = RotaryType(kind)
    except ValueError as error:
        supported = ", ".join(member.value for member in RotaryType)
        raise rope.fail("rope_type", f"{kind!r} is not supported; supported are {supported}") from error
    for place in (keys, rope):
        if place.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise place.fail("partial_rotary_factor", "other than 1 is not supported")
    base = rope.number("rope_theta", keys.number("rope_theta", 10_000.0))
    if rotary_type is RotaryType.DEFAULT:
        return RotaryConfig(base=base)
    if rotary_type in (RotaryType.LINEAR, RotaryType.DYNAMIC):
        return RotaryConfig(rotary_type, base, rope.number("factor"), max_position_embeddings)
    # A key beside the object wins over the one inside, as in transformers.
    original = keys.integer(
        "original_max_position_embeddings",
        rope.integer("original_max_position_embeddings", max_position_embeddings),
    )
    if rotary_type is RotaryType.LLAMA3:
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if high <= low:
            raise rope.fail("high_freq_factor", f"({high}) must be greater than low_freq_factor ({low})")
        return RotaryConfig(
            rotary_type, base, rope.number("factor"), original, low_freq_factor=low, high_freq_factor=high
        )
    return RotaryConfig(
        rotary_type,
        base,
        rope.number("factor", max_position_embeddings / original),
        original,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        # Zero means absent here, as in transformers.
        mscale=rope.optional_number("mscale") if rope.get("mscale") else None,
        mscale_all_dim=rope.optional_number("mscale_all_dim") if rope.get("mscale_all_dim") else None,
        attention_factor=rope.optional_number("attention_factor"),
        truncate=rope.flag("truncate", True),
    )
