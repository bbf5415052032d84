"""The forward pass out of Triton's kernels, against transformers and against torch's operators.

Tokens are given, not sampled, so that logits of every step can be compared with those of one pass over the whole.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.checkpoints import load_reference, make_checkpoint
from support.step_driver import load, prompt_of
from torch import Tensor

from quire import kernels
from quire.executor.decoder import Decoder
from quire.executor.input_batch import BatchArrays, InputBatch
from quire.executor.kv_cache import KvCache
from quire.executor.model import Model
from quire.executor.weights import DecoderWeights, LayerWeights

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# In the interpreter numpy warns of what is no error on a GPU: of infinities and their differences.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

BLOCK_SIZE, BLOCKS_EACH = 4, 4

# Of three sequences; tokens of each step by sequence. Chunks of prompts, whole prompts and decodes side by side.
LENGTHS = (13, 4, 6)
STEPS: tuple[dict[int, int], ...] = ({0: 8, 1: 3}, {1: 1, 0: 4, 2: 5}, {2: 1, 0: 1})

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama: one KV head, head_dim apart": (
        "llama",
        {"num_key_value_heads": 1, "head_dim": 24, "tie_word_embeddings": True},
    ),
    "qwen2: biases": ("qwen2", {}),
    "qwen3: norms of queries and keys": ("qwen3", {"attention_bias": True}),
    "mistral: window": ("mistral", {"sliding_window": 5}),
}


class Steps:
    """A model and a cache of its own; sequence s has blocks BLOCKS_EACH * s and the ones behind."""

    def __init__(self, model: Model) -> None:
        assert isinstance(model.decoder, Decoder)
        self.decoder = model.decoder
        self.tokens = [np.array(prompt_of(length, seed=length)) for length in LENGTHS]
        num_blocks = BLOCKS_EACH * len(LENGTHS)
        self.cache = KvCache.allocate(num_blocks, BLOCK_SIZE, model.cache_group, model.kv_cache_dtype, model.device)
        self.computed = [0] * len(LENGTHS)

    def run(self, counts: dict[int, int], padding: int = 0) -> Tensor:
        """Computes so many tokens of each sequence, and rows that belong to none; the logits of each one's last."""
        arrays = self._arrays(counts, padding)
        for sequence, count in counts.items():
            self.computed[sequence] += count
        with torch.inference_mode():
            return self.decoder.forward(
                InputBatch(arrays, self.cache.blocks.device, np.arange(len(counts))), self.cache
            )

    def _arrays(self, counts: dict[int, int], padding: int) -> BatchArrays:
        positions = [self.computed[sequence] + np.arange(count) for sequence, count in counts.items()]
        tables = [BLOCKS_EACH * sequence + np.arange(BLOCKS_EACH) for sequence in counts]
        rows = list(zip(counts, positions, tables, strict=True))
        query_start = np.cumsum([0, *counts.values(), *[1] * padding])

        def column(parts: list[Any], value: int = 0) -> NDArray[np.int32]:
            return np.concatenate([*parts, np.full(padding, value)]).astype(np.int32)

        return BatchArrays(
            token_ids=column([self.tokens[sequence][at] for sequence, at, _ in rows]),
            positions=column(positions),
            rotary_lengths=None,
            query_start=query_start.astype(np.int32),
            context_lens=column([at[-1:] + 1 for at in positions]),
            block_tables=np.stack([*tables, *[tables[0] * 0] * padding]).astype(np.int32),
            slot_mapping=column(
                [table[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE for _, at, table in rows], -1
            ).astype(np.int64),
            logit_rows=query_start[1 : len(counts) + 1].astype(np.int32) - np.int32(1),
        )


def make_model(folder: Path, name: str, device: torch.device) -> Model:
    architecture, overrides = MODELS[name]
    sizes = {"num_hidden_layers": 2, "max_position_embeddings": 64, "vocab_size": 320}
    return load(make_checkpoint(folder, architecture, **{**sizes, **overrides}), device=device.type, dtype="float32")


def narrowed(model: Model, dtype: torch.dtype, kv_cache_dtype: torch.dtype) -> Model:
    """The same model in other types."""
    assert isinstance(model.decoder, Decoder)
    weights, layers = model.decoder.weights, []
    for layer in weights.layers:
        tensors = {name: getattr(layer, name) for name in LayerWeights.__slots__}
        layers.append(LayerWeights(**{name: None if t is None else t.to(dtype) for name, t in tensors.items()}))
    cast = DecoderWeights(weights.embedding.to(dtype), tuple(layers), weights.norm.to(dtype), weights.head.to(dtype))
    decoder = Decoder(model.config, cast, model.max_model_len)
    return dataclasses.replace(model, decoder=decoder, dtype=dtype, kv_cache_dtype=kv_cache_dtype)


def in_torch(steps: Steps, counts: dict[int, int]) -> Tensor:
    kernels.set_implementation("torch")
    logits = steps.run(counts)
    kernels.set_implementation("triton")
    return logits


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_torch_and_of_transformers(name, tmp_path, device):
    folder = tmp_path / "model"
    model = make_model(folder, name, device)
    reference = load_reference(folder)
    ours, theirs = Steps(model), Steps(model)
    for counts in STEPS:
        logits = ours.run(counts)
        torch.testing.assert_close(logits, in_torch(theirs, counts), rtol=0, atol=1e-4)
        for row, sequence in enumerate(counts):
            tokens = torch.from_numpy(ours.tokens[sequence][: ours.computed[sequence]])
            with torch.no_grad():
                expected = reference(tokens[None]).logits[0, -1]
            torch.testing.assert_close(logits[row].cpu(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "kv_cache_dtype"),
    [(torch.float16, torch.int8)]
    + ([] if INTERPRETED else [(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float8_e4m3fn)]),
)
def test_narrow_types_are_as_close_as_in_torch(dtype, kv_cache_dtype, tmp_path, device):
    exact_model = make_model(tmp_path / "model", "qwen3: norms of queries and keys", device)
    model = narrowed(exact_model, dtype, kv_cache_dtype)
    ours, theirs, exact = Steps(model), Steps(model), Steps(exact_model)
    for counts in STEPS:
        expected = in_torch(exact, counts)
        our_error = (ours.run(counts) - expected).abs().mean()
        assert our_error < 1.5 * (in_torch(theirs, counts) - expected).abs().mean() + 1e-3


def test_neighbours_and_padding_change_nothing(tmp_path, device):
    model = make_model(tmp_path / "model", "qwen3: norms of queries and keys", device)
    together, alone = Steps(model), Steps(model)
    # Not a bit on a GPU; in the interpreter numpy adds up a matrix's products as its size suggests.
    error = 1e-5 if INTERPRETED else 0.0
    for counts, padding in zip(STEPS, (1, 0, 2), strict=True):
        logits = together.run(counts, padding)
        if 0 in counts:
            row = list(counts).index(0)
            torch.testing.assert_close(logits[row], alone.run({0: counts[0]})[0], rtol=0, atol=error)
    held, expected = (steps.cache.blocks.view(torch.float32) for steps in (together, alone))
    torch.testing.assert_close(held[:BLOCKS_EACH], expected[:BLOCKS_EACH], rtol=0, atol=error)
    # Sequence s has written the blocks from BLOCKS_EACH * s on that its tokens fill; padding has written none.
    written = {BLOCKS_EACH * s + at // BLOCK_SIZE for s, length in enumerate(LENGTHS) for at in range(length)}
    assert set(held.any(dim=1).nonzero().flatten().tolist()) == written
