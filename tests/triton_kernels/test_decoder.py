"""The forward pass out of Triton's kernels, against transformers and against torch's operators.

Tokens are given, not sampled, so that logits of every step can be compared with those of one pass over the whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import load_reference, make_checkpoint
from support.step_driver import load, prompt_of
from torch import Tensor

from quire import kernels
from quire.executor.decoder import Decoder
from quire.executor.input_batch import BatchArrays, InputBatch
from quire.executor.kv_cache import KvCache
from quire.executor.model import Model

# In the interpreter numpy warns of what is no error on a GPU: of infinities and their differences.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

BLOCK_SIZE, BLOCKS_EACH = 16, 3

# Of four sequences; tokens of each step by sequence. Chunks of prompts, whole prompts and decodes side by side.
LENGTHS = (37, 6, 20, 2)
STEPS: tuple[dict[int, int], ...] = ({0: 20, 1: 5}, {1: 1, 0: 16, 2: 19}, {2: 1, 0: 1, 3: 2})
# Sequences of one decode step, the last tokens of which were not computed before.
DECODES: tuple[dict[int, int], ...] = ({0: 36, 1: 5, 2: 19}, {2: 1, 0: 1, 1: 1})

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "llama, one KV head, head_dim apart": ("llama", {"num_key_value_heads": 1, "head_dim": 24}),
    "qwen2: biases": ("qwen2", {}),
    "qwen3: norms of queries and keys, biases": ("qwen3", {"attention_bias": True}),
    "mistral: window": ("mistral", {"sliding_window": 11}),
    "dynamic: angles that depend on the length": (
        "llama",
        {"max_position_embeddings": 16, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0}},
    ),
}


class Steps:
    """A model and a cache of its own; sequence s has blocks BLOCKS_EACH * s and the ones behind."""

    def __init__(self, model: Model, kv_cache_dtype: torch.dtype | None = None) -> None:
        assert isinstance(model.decoder, Decoder)
        self.decoder = model.decoder
        self.device = model.device
        self.tokens = [np.array(prompt_of(length, seed=length), np.int32) for length in LENGTHS]
        self.cache = KvCache.allocate(
            BLOCKS_EACH * len(LENGTHS),
            BLOCK_SIZE,
            model.cache_group,
            kv_cache_dtype or model.kv_cache_dtype,
            model.device,
        )
        self.computed = [0] * len(LENGTHS)

    def run(self, counts: dict[int, int], *, padding: int = 0) -> Tensor:
        """Computes so many tokens of each sequence; the logits of the last of each, in order."""
        logits = self.compute(self._batch(counts, padding))
        for sequence, count in counts.items():
            self.computed[sequence] += count
        return logits

    def compute(self, batch: InputBatch) -> Tensor:
        with torch.inference_mode():
            return self.decoder.forward(batch, self.cache)

    def _batch(self, counts: dict[int, int], padding: int) -> InputBatch:
        starts = [self.computed[sequence] for sequence in counts]
        ends = [start + count for start, count in zip(starts, counts.values(), strict=True)]
        positions = [np.arange(start, end) for start, end in zip(starts, ends, strict=True)]
        tables = np.array([np.arange(BLOCKS_EACH) + BLOCKS_EACH * sequence for sequence in counts])
        slots = [table[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE for table, at in zip(tables, positions)]
        query_start = np.cumsum([0, *counts.values(), *[1] * padding])
        lengths = [
            np.maximum(len(self.tokens[sequence]) - 1, at + 1) for sequence, at in zip(counts, positions, strict=True)
        ]
        arrays = BatchArrays(
            token_ids=_padded([self.tokens[s][at] for s, at in zip(counts, positions, strict=True)], padding, 0),
            positions=_padded(positions, padding, 0),
            rotary_lengths=_padded(lengths, padding, 1) if self.decoder.needs_rotary_lengths else None,
            query_start=query_start.astype(np.int32),
            context_lens=_padded([np.array(ends)], padding, 0),
            block_tables=np.pad(tables, ((0, padding), (0, 0))).astype(np.int32),
            slot_mapping=_padded(slots, padding, -1).astype(np.int64),
            logit_rows=_padded([query_start[1 : len(counts) + 1] - 1], padding, 0),
        )
        return InputBatch(arrays, self.device, np.arange(len(counts)))


def _padded(columns: Iterable[np.ndarray], padding: int, value: int) -> np.ndarray:
    return np.concatenate([*columns, np.full(padding, value)]).astype(np.int32)


def make_model(folder: Path, name: str, device: torch.device, **settings: Any) -> tuple[Model, Path]:
    architecture, overrides = MODELS[name]
    make_checkpoint(folder, architecture, **{"num_hidden_layers": 2, "max_position_embeddings": 64, **overrides})
    return load(folder, device=device.type, **settings), folder


def in_torch(steps: Steps, counts: dict[int, int]) -> Tensor:
    kernels.set_implementation("torch")
    logits = steps.run(counts)
    kernels.set_implementation("triton")
    return logits


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name, tmp_path, device):
    model, folder = make_model(tmp_path / "model", name, device, dtype="float32")
    reference = load_reference(folder)
    steps, theirs = Steps(model), Steps(model)
    for counts in STEPS:
        logits = steps.run(counts)
        torch.testing.assert_close(logits, in_torch(theirs, counts), rtol=0, atol=1e-4)
        if "dynamic" in name:
            continue  # transformers' angles then depend on how much it computes at once
        for row, sequence in enumerate(counts):
            tokens = torch.from_numpy(steps.tokens[sequence][: steps.computed[sequence]]).long()
            with torch.no_grad():
                expected = reference(tokens[None]).logits[0, -1]
            torch.testing.assert_close(logits[row].cpu(), expected, rtol=0, atol=1e-4)


def test_narrow_types(tmp_path, dtype, device):
    model, _ = make_model(tmp_path / "model", "qwen3: norms of queries and keys, biases", device, dtype="float32")
    assert isinstance(model.decoder, Decoder)
