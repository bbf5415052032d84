"""The forward pass, operator after operator, on GPUs and as the reference: for Llama, Mistral, Qwen2 and Qwen3.

All tokens of a step lie behind one another, [num_tokens, hidden], whichever sequence they belong to; only
attention knows sequences, through the block tables. The families differ in what their weights hold (biases,
norms of queries and keys) and in the window of a layer.

Nothing here waits for the device or copies to it: a batch's tensors lie there, and what is read of them is their shape.
So a CUDA graph can hold all of it (docs/gpu.md).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from quire import kernels
from quire.executor.input_batch import InputBatch
from quire.executor.kv_cache import KvCache
from quire.executor.model_config import ModelConfig
from quire.executor.readouts import FinalStates
from quire.executor.rotary import RotaryEmbedding
from quire.executor.weights import DecoderWeights, LayerWeights
from quire.kernels import SampledTokens, SamplingBatch
from quire.step_counters import StepCounters


class Decoder:
    """A decoder-only transformer over a paged KV cache."""

    def __init__(self, config: ModelConfig, weights: DecoderWeights, max_model_len: int) -> None:
        self.config = config
        self.weights = weights
        self._rotary = RotaryEmbedding(config.rotary, config.head_dim, weights.embedding.device)
        self._rotary.tabulate(max_model_len)

    @property
    def needs_rotary_lengths(self) -> bool:
        """Whether a batch must have `rotary_lengths`."""
        return self._rotary.needs_lengths

    @property
    def num_bytes(self) -> int:
        """Memory of the weights."""
        return self.weights.num_bytes

    def step(
        self,
        batch: InputBatch,
        cache: KvCache,
        sampling: SamplingBatch | None,
        states: FinalStates | None = None,
        counters: StepCounters | None = None,
    ) -> SampledTokens | None:
        """As `forward`, and chooses a token for each logit row; `sampling` is None if there are none."""
        logits = self.forward(batch, cache, states, counters)
        return None if sampling is None else kernels.sample(logits, sampling)

    def head(self, states: Tensor) -> Tensor:
        """float32 [n, vocab]: the logits of final states, float32 [n, hidden]."""
        head = self.weights.head
        return kernels.linear(states.to(head.dtype), head).to(torch.float32)

    def forward(
        self,
        batch: InputBatch,
        cache: KvCache,
        states: FinalStates | None = None,
        counters: StepCounters | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Computes the step's tokens, writes their keys and values into the cache, fills `states`, counts layers.

        Returns:
            float32 [num_logit_rows, vocab]: logits of `batch.logit_rows` alone; `out` if that was given.
        """
        eps = self.config.rms_norm_eps
        angles = self._rotary.cos_sin(batch.positions, batch.rotary_lengths)
        residual = functional.embedding(batch.token_ids, self.weights.embedding)
        normed = kernels.rms_norm(residual, self.weights.layers[0].input_norm, eps)
        # What the layer before added to the residual stream: its sum and the next norm are one operation.
        added: Tensor | None = None
        for index, layer in enumerate(self.weights.layers):
            if added is not None:
                normed, residual = kernels.fused_add_rms_norm(added, residual, layer.input_norm, eps)
            attended = self._attention(index, layer, normed, angles, batch, cache)
            normed, residual = kernels.fused_add_rms_norm(attended, residual, layer.post_attention_norm, eps)
            added = _feed_forward(layer, normed)
            if counters is not None:
                counters.count_layer()
        assert added is not None

        def final(rows: Tensor) -> Tensor:
            some = added.index_select(0, rows), residual.index_select(0, rows)
            return kernels.fused_add_rms_norm(*some, self.weights.norm, eps)[0]

        if states is not None:
            states.values.copy_(final(states.rows_on_device()))
        if batch.logit_rows.numel() == 0:
            return torch.empty((0, self.config.vocab_size), device=residual.device)
        logits = kernels.linear(final(batch.logit_rows), self.weights.head)
        return logits.to(torch.float32) if out is None else out.copy_(logits)

    def _attention(
        self,
        index: int,
        layer: LayerWeights,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        batch: InputBatch,
        cache: KvCache,
    ) -> Tensor:
        config = self.config
        qkv = kernels.linear(x, layer.qkv, layer.qkv_bias)
        keys, values = cache.layers[index]
        # Before attention and for all tokens: a sequence may read blocks that another one fills in this step.
        kernels.rotate_and_store(
            qkv,
            *angles,
            keys,
            values,
            batch.attention.slot_mapping,
            layer.q_norm,
            layer.k_norm,
            config.rms_norm_eps,
        )
        attended = kernels.paged_attention(
            qkv.view(len(qkv), -1, config.head_dim)[:, : config.num_heads],
            keys,
            values,
            batch.attention,
            scale=config.head_dim**-0.5,
            sliding_window=config.sliding_windows[index],
        )
        return kernels.linear(attended.flatten(1), layer.output, layer.output_bias)


def _feed_forward(layer: LayerWeights, x: Tensor) -> Tensor:
    gate_up = kernels.linear(x, layer.gate_up, layer.gate_up_bias)
    return kernels.linear(kernels.silu_and_mul(gate_up), layer.down, layer.down_bias)
