"""The tensors of a checkpoint, laid out for the decoder.

Projections that read the same input are joined into one matrix, row after row, which changes no number.
Each tensor is copied out of the mapped file once, into its place and type: a file that is replaced later
cannot change a running model, and never more than one copy of the model is in memory besides the page cache.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import rich.console
import rich.progress
import torch
from torch import Tensor

from quire.executor.checkpoint import Checkpoint
from quire.executor.model_config import ModelConfig

_PIECE_BYTES: Final = 4096
_PIECES: Final = 16


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer; matrices are [out, in], the biases that the model lacks are None."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    output: Tensor
    output_bias: Tensor | None
    post_attention_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """A whole model. `head` is `embedding` itself where the checkpoint ties them."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Tensor

    @property
    def num_bytes(self) -> int:
        """Memory of all tensors, shared ones counted once."""
        tensors = [self.embedding, self.norm, self.head]
        for layer in self.layers:
            values = (getattr(layer, name) for name in LayerWeights.__slots__)
            tensors += [value for value in values if value is not None]
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


class Digest(Protocol):
    """A hash object, as of hashlib."""

    def update(self, data: bytes, /) -> object: ...


def load_weights(
    checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype, device: torch.device, digest: Digest
) -> DecoderWeights:
    """Loads every tensor the decoder needs, with a progress bar if stderr is a terminal.

    `digest` is fed name, shape, type and a content sample of each tensor. Raises CheckpointError.
    """
    num_layers = config.num_layers
    with progress(num_layers + 1) as advance:
        loader = _Loader(checkpoint, dtype, device, digest)
        hidden, vocab = config.hidden_size, config.vocab_size
        embedding = loader.one("model.embed_tokens.weight", (vocab, hidden))
        head = embedding if config.tie_word_embeddings else loader.one("lm_head.weight", (vocab, hidden))
        norm = loader.one("model.norm.weight", (hidden,))
        advance()
        layers = []
        for index in range(num_layers):
            layers.append(_load_layer(loader, config, f"model.layers.{index}."))
            advance()
        return DecoderWeights(embedding, tuple(layers), norm, head)


def _load_layer(loader: _Loader, config: ModelConfig, prefix: str) -> LayerWeights:
    hidden, intermediate, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    query, key = config.num_heads * head_dim, config.num_kv_heads * head_dim
    qkv = {f"{prefix}self_attn.{name}_proj.": size for name, size in (("q", query), ("k", key), ("v", key))}
    gate_up = {f"{prefix}mlp.{name}_proj.": intermediate for name in ("gate", "up")}
    output, down = {f"{prefix}self_attn.o_proj.": hidden}, {f"{prefix}mlp.down_proj.": hidden}
    return LayerWeights(
        input_norm=loader.one(f"{prefix}input_layernorm.weight", (hidden,)),
        qkv=loader.matrix(qkv, hidden),
        qkv_bias=loader.bias(qkv) if config.qkv_bias else None,
        q_norm=loader.one(f"{prefix}self_attn.q_norm.weight", (head_dim,)) if config.qk_norm else None,
        k_norm=loader.one(f"{prefix}self_attn.k_norm.weight", (head_dim,)) if config.qk_norm else None,
        output=loader.matrix(output, query),
        output_bias=loader.bias(output) if config.output_bias else None,
        post_attention_norm=loader.one(f"{prefix}post_attention_layernorm.weight", (hidden,)),
        gate_up=loader.matrix(gate_up, hidden),
        gate_up_bias=loader.bias(gate_up) if config.mlp_bias else None,
        down=loader.matrix(down, intermediate),
        down_bias=loader.bias(down) if config.mlp_bias else None,
    )


class _Loader:
    """Copies tensors of a checkpoint into memory of the right type and device."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, digest: Digest) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._device = device
        self._digest = digest

    def one(self, name: str, shape: tuple[int, ...]) -> Tensor:
        loaded = self._empty(shape)
        self._copy(name, loaded)
        return loaded

    def matrix(self, parts: dict[str, int], in_features: int) -> Tensor:
        """The weights of projections that read one input; `parts` maps name prefixes to output sizes."""
        loaded = self._empty((sum(parts.values()), in_features))
        for prefix, rows in zip(parts, torch.split(loaded, list(parts.values())), strict=True):
            self._copy(f"{prefix}weight", rows)
        return loaded

    def bias(self, parts: dict[str, int]) -> Tensor:
        loaded = self._empty((sum(parts.values()),))
        for prefix, rows in zip(parts, torch.split(loaded, list(parts.values())), strict=True):
            self._copy(f"{prefix}bias", rows)
        return loaded

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=self._dtype, device=self._device)

    def _copy(self, name: str, destination: Tensor) -> None:
        source = self._checkpoint.tensor(name, tuple(destination.shape))
        feed(self._digest, name, source)
        destination.copy_(source)


def feed(digest: Digest, name: str, tensor: Tensor) -> None:
    """Name, shape, type and up to 16 evenly spaced pieces of 4 KiB, the first and last bytes among them.

    Hashing all of a large checkpoint would take longer than loading it. Any training step changes (nearly)
    every element of the matrices it trains, so a sample of each tells two checkpoints apart.
    """
    digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
    content = tensor.reshape(-1).view(torch.uint8)
    last = max(0, len(content) - _PIECE_BYTES)
    for start in sorted({last * piece // (_PIECES - 1) for piece in range(_PIECES)}):
        digest.update(content[start : start + _PIECE_BYTES].cpu().numpy().tobytes())


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    columns = (
        rich.progress.TextColumn("Loading weights"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TimeElapsedColumn(),
    )
    with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
