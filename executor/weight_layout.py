"""Where each weight of a model lies in one piece of memory: decided by configuration and formats alone.

So the memory can be asked for before anything is read, and whoever maps packed weights that another process made finds
everything by the same rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

import torch

from quire.executor.model_config import ModelConfig
from quire.kernels import PackedFormat, packed_bytes

ALIGNMENT: Final = 64


@dataclass(frozen=True, slots=True)
class WeightFormats:
    """What the weights of a model are held as."""

    #: All matrices of the layers.
    matrices: PackedFormat
    head: PackedFormat
    #: Type of the embedding's rows. A tied head that is not quantised serves as the embedding, too.
    embedding: torch.dtype

    @classmethod
    def choose(cls, dtype: torch.dtype, quantization: str | None) -> Self:
        """The formats for --dtype (float32 or bfloat16) and --quantization."""
        match quantization:
            case "int8":
                return cls("int8", "int8", dtype)
            case "int8_weight_only":
                return cls("int8_weight_only", "int8_weight_only", dtype)
            case "int4":
                # Few bits cost most where the next token is chosen, and the head is read once per step, not per layer.
                return cls("int4", "int8_weight_only", dtype)
            case _:
                plain: PackedFormat = "float32" if dtype == torch.float32 else "bfloat16"
                return cls(plain, plain, dtype)

    @property
    def quantized(self) -> bool:
        return self.head not in ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class Section:
    """A weight: a packed matrix, or a plain tensor."""

    name: str
    offset: int
    num_bytes: int
    shape: tuple[int, ...]
    #: Of a packed matrix.
    packed_format: PackedFormat | None
    #: Of a plain tensor.
    dtype: torch.dtype


class WeightLayout:
    """The sections of a model by name.

    Matrices: "head" and, for each layer i, "i.qkv", "i.output", "i.gate_up" (gate and up in turns of 16 outputs) and
    "i.down". Vectors, float32: "norm", "i.input_norm", "i.attention_norm", and where the model has them "i.q_norm",
    "i.k_norm" and "i.<matrix>.bias". "embedding" is there unless the head serves as it.
    """

    def __init__(self, config: ModelConfig, formats: WeightFormats) -> None:
        self.config = config
        self.formats = formats
        self.sections: dict[str, Section] = {}
        self.num_bytes = 0
        self._lay_out()

    @property
    def shares_embedding(self) -> bool:
        """Whether the head serves as the embedding."""
        return self.config.tie_word_embeddings and not self.formats.quantized

    def _lay_out(self) -> None:
        config = self.config
        if not self.shares_embedding:
            self._plain("embedding", (config.vocab_size, config.hidden_size), self.formats.embedding)
        for index in range(config.num_layers):
            for name, outputs, inputs, has_bias in layer_matrices(config):
                self._matrix(f"{index}.{name}", outputs, inputs, self.formats.matrices)
                if has_bias:
                    self._plain(f"{index}.{name}.bias", (outputs,))
            for name, size in layer_norms(config):
                self._plain(f"{index}.{name}", (size,))
        self._plain("norm", (config.hidden_size,))
        self._matrix("head", config.vocab_size, config.hidden_size, self.formats.head)

    def _matrix(self, name: str, outputs: int, inputs: int, packed_format: PackedFormat) -> None:
        size = packed_bytes(packed_format, outputs, inputs)
        self._add(Section(name, self.num_bytes, size, (outputs, inputs), packed_format, torch.uint8))

    def _plain(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
        size = torch.Size(shape).numel() * dtype.itemsize
        self._add(Section(name, self.num_bytes, size, shape, None, dtype))

    def _add(self, section: Section) -> None:
        self.sections[section.name] = section
        self.num_bytes += -(-section.num_bytes // ALIGNMENT) * ALIGNMENT


def layer_matrices(config: ModelConfig) -> Iterator[tuple[str, int, int, bool]]:
    """(name, outputs, inputs, whether there is a bias) of a layer's matrices."""
    hidden, heads_size = config.hidden_size, config.num_heads * config.head_dim
    gate = -(-config.intermediate_size // 16) * 16
    yield "qkv", heads_size + 2 * config.num_kv_heads * config.head_dim, hidden, config.qkv_bias
    yield "output", hidden, heads_size, config.output_bias
    yield "gate_up", 2 * gate, hidden, config.mlp_bias
    yield "down", hidden, config.intermediate_size, config.mlp_bias


def layer_norms(config: ModelConfig) -> Iterator[tuple[str, int]]:
    """(name, size) of a layer's norms."""
    yield "input_norm", config.hidden_size
    yield "attention_norm", config.hidden_size
    if config.qk_norm:
        yield "q_norm", config.head_dim
        yield "k_norm", config.head_dim
