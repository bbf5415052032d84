"""A model's weights for the native kernels: packed matrices and float32 vectors in one piece of memory.

Every tensor is read once from the mapped checkpoint and packed into its place; besides the page cache there is never
more than one copy of the model.
"""

from __future__ import annotations

import hashlib
import mmap
from typing import Final

import torch
from torch import Tensor

from quire.config import ExecutorSettings
from quire.errors import CheckpointError
from quire.executor.checkpoint import Checkpoint
from quire.executor.weight_layout import WeightLayout
from quire.executor.weights import Digest, feed, progress
from quire.kernels import PackedWeight, pack_weight
from quire.weight_store import fetch_or_pack

# Changes with the bytes that `pack_weight` makes of a matrix.
_FORMAT_VERSION: Final = 1
_PACKABLE: Final = (torch.float32, torch.bfloat16)


class PackedWeights:
    """The weights of a layout, in memory that somebody provides."""

    def __init__(self, layout: WeightLayout, memory: Tensor) -> None:
        """`memory` is uint8 [layout.num_bytes], 64-byte aligned."""
        self.layout = layout
        self.memory = memory

    @property
    def num_bytes(self) -> int:
        return self.layout.num_bytes

    def bytes_of(self, name: str) -> Tensor:
        """uint8 [bytes of the section]."""
        section = self.layout.sections[name]
        return self.memory[section.offset : section.offset + section.num_bytes]

    def plain(self, name: str) -> Tensor | None:
        """A vector or the embedding; None where the model has none of that name."""
        section = self.layout.sections.get(name)
        return None if section is None else self.bytes_of(name).view(section.dtype).view(section.shape)

    def matrix(self, name: str) -> PackedWeight:
        section = self.layout.sections[name]
        assert section.packed_format is not None, f"{name} is no matrix"
        outputs, inputs = section.shape
        return PackedWeight(self.bytes_of(name), section.packed_format, outputs, inputs, self.plain(f"{name}.bias"))


def obtain(
    checkpoint: Checkpoint, layout: WeightLayout, dtype: torch.dtype, settings: ExecutorSettings
) -> tuple[PackedWeights, bytes]:
    """The weights, and 32 bytes that tell their content: from --weight-store if it has them, else packed now.

    `dtype` as for `pack_checkpoint`. Raises StartupError (CheckpointError for the files).
    """

    def pack(memory: mmap.mmap) -> bytes:
        return pack_checkpoint(checkpoint, PackedWeights(layout, _bytes_of(memory)), dtype)

    if settings.weight_store is None:
        memory = mmap.mmap(-1, layout.num_bytes)
        return PackedWeights(layout, _bytes_of(memory)), pack(memory)
    named = f"{checkpoint.identity()}\n{layout.config}\n{layout.formats}\n{dtype}\n{_FORMAT_VERSION}"
    key = hashlib.sha256(named.encode()).digest()
    memory, digest = fetch_or_pack(settings.weight_store, key, layout.num_bytes, pack, settings.startup_timeout)
    return PackedWeights(layout, _bytes_of(memory)), digest


def _bytes_of(memory: mmap.mmap) -> Tensor:
    return torch.frombuffer(memory, dtype=torch.uint8)


def pack_checkpoint(checkpoint: Checkpoint, weights: PackedWeights, dtype: torch.dtype) -> bytes:
    """Fills the weights' memory, with a progress bar if stderr is a terminal.

    `dtype` is what values are rounded to, unless they are quantised from the checkpoint's own. Returns a digest of the
    tensors' names, shapes, types and samples of their content. Raises CheckpointError.
    """
    config = weights.layout.config
    digest = hashlib.sha256()
    packer = _Packer(checkpoint, weights, dtype, digest)
    with progress(config.num_layers + 1) as advance:
        head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
        if not weights.layout.shares_embedding:
            packer.plain("embedding", "model.embed_tokens.weight")
        packer.matrix("head", [(f"{head}.weight", config.vocab_size)])
        packer.plain("norm", "model.norm.weight")
        advance()
        for index in range(config.num_layers):
            _pack_layer(packer, index)
            advance()
    return digest.digest()


def _pack_layer(packer: _Packer, index: int) -> None:
    config = packer.weights.layout.config
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention, feed_forward = f"model.layers.{index}.self_attn", f"model.layers.{index}.mlp"
    projections = {
        "qkv": {f"{attention}.q_proj": heads, f"{attention}.k_proj": kv_heads, f"{attention}.v_proj": kv_heads},
        "output": {f"{attention}.o_proj": config.hidden_size},
        "gate_up": {f"{feed_forward}.{name}_proj": config.intermediate_size for name in ("gate", "up")},
        "down": {f"{feed_forward}.down_proj": config.hidden_size},
    }
    for name, parts in projections.items():
        packer.matrix(f"{index}.{name}", [(f"{part}.weight", size) for part, size in parts.items()])
        if f"{index}.{name}.bias" in packer.weights.layout.sections:
            packer.bias(f"{index}.{name}", [(f"{part}.bias", size) for part, size in parts.items()])
    packer.plain(f"{index}.input_norm", f"model.layers.{index}.input_layernorm.weight")
    packer.plain(f"{index}.attention_norm", f"model.layers.{index}.post_attention_layernorm.weight")
    if config.qk_norm:
        packer.plain(f"{index}.q_norm", f"{attention}.q_norm.weight")
        packer.plain(f"{index}.k_norm", f"{attention}.k_norm.weight")


class _Packer:
    """Reads tensors of a checkpoint into their sections. Lists of (tensor's name, outputs) are joined."""

    def __init__(self, checkpoint: Checkpoint, weights: PackedWeights, dtype: torch.dtype, digest: Digest) -> None:
        self.weights = weights
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._digest = digest

    def matrix(self, name: str, parts: list[tuple[str, int]]) -> None:
        section = self.weights.layout.sections[name]
        assert section.packed_format is not None
        matrices = [self._read(part, (outputs, section.shape[1])) for part, outputs in parts]
        if section.packed_format in ("float32", "bfloat16"):
            matrices = [matrix.to(self._dtype) for matrix in matrices]
        elif any(matrix.dtype not in _PACKABLE for matrix in matrices):
            matrices = [matrix.to(torch.float32) for matrix in matrices]
        try:
            pack_weight(
                matrices, section.packed_format, interleave=name.endswith("gate_up"), out=self.weights.bytes_of(name)
            )
        except ValueError as error:
            raise CheckpointError(f"{', '.join(part for part, _ in parts)}: {error}", field="model") from error

    def bias(self, matrix: str, parts: list[tuple[str, int]]) -> None:
        destination = self._plain(f"{matrix}.bias")
        values = [self._read(part, (outputs,)).to(self._dtype) for part, outputs in parts]
        if matrix.endswith("gate_up"):
            turns = torch.zeros(2, destination.numel() // 2)
            for row, value in zip(turns, values, strict=True):
                row[: len(value)] = value
            values = [turns.view(2, -1, 16).transpose(0, 1).reshape(-1)]
        destination.copy_(torch.cat(values))

    def plain(self, name: str, source: str) -> None:
        destination = self._plain(name)
        destination.copy_(self._read(source, tuple(destination.shape)).to(self._dtype))

    def _plain(self, name: str) -> Tensor:
        tensor = self.weights.plain(name)
        assert tensor is not None
        return tensor

    def _read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self._checkpoint.tensor(name, shape)
        feed(self._digest, name, tensor)
        return tensor
