"""The decoder on a CPU: packed weights, and one native call for a whole step (kernels/native/step.cpp).

Activations are float32 throughout, whatever the weights are held as. A token's bits depend on its sequence alone: no
kernel lets the other rows of a step change the order of a row's sums.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire.executor.input_batch import BatchArrays, InputBatch
from quire.executor.kv_cache import KvCache
from quire.executor.packed_weights import PackedWeights
from quire.executor.readouts import FinalStates
from quire.executor.rotary import RotaryTable
from quire.kernels import (
    SampledTokens,
    SamplingBatch,
    linear,
    native_attention,
    native_linear,
    native_sampling,
    native_step,
)
from quire.step_counters import StepCounters

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}


class NativeDecoder:
    """A decoder-only transformer over a paged KV cache, of the families that `Decoder` has."""

    def __init__(self, weights: PackedWeights) -> None:
        self.config = weights.layout.config
        self.weights = weights
        self._rotary = RotaryTable(self.config.rotary, self.config.head_dim)
        #: For each cache, the structures that name its memory; gone when it is.
        self.caches: weakref.WeakKeyDictionary[KvCache, _BoundDecoder] = weakref.WeakKeyDictionary()

    @property
    def needs_rotary_lengths(self) -> bool:
        """Whether a batch must have `rotary_lengths`."""
        return self._rotary.needs_lengths

    @property
    def num_bytes(self) -> int:
        """Memory of the weights."""
        return self.weights.num_bytes

    def forward(
        self,
        batch: InputBatch,
        cache: KvCache,
        states: FinalStates | None = None,
        counters: StepCounters | None = None,
    ) -> Tensor:
        """As `Decoder.forward`."""
        logits = torch.empty(len(batch.arrays.logit_rows), self.config.vocab_size)
        self._run(batch, cache, logits.data_ptr(), None, states, counters)
        return logits

    def step(
        self,
        batch: InputBatch,
        cache: KvCache,
        sampling: SamplingBatch | None,
        states: FinalStates | None = None,
        counters: StepCounters | None = None,
    ) -> SampledTokens | None:
        """As `Decoder.step`, in one native call: logits never leave it."""
        if sampling is None:
            self._run(batch, cache, None, None, states, counters)
            return None
        vocab_size = self.config.vocab_size
        args, sampled = native_sampling.sampling_args(sampling, None, vocab_size, vocab_size)
        self._run(batch, cache, None, args, states, counters)
        return sampled

    def head(self, states: Tensor) -> Tensor:
        """As `Decoder.head`; a row's bits are those of a step's own logits."""
        return linear(states, self.weights.matrix("head"))

    def _run(
        self,
        batch: InputBatch,
        cache: KvCache,
        logits: int | None,
        sampling: native_sampling.SamplingArgs | None,
        states: FinalStates | None,
        counters: StepCounters | None,
    ) -> None:
        bound = self.caches.get(cache)
        if bound is None:
            bound = self.caches[cache] = _BoundDecoder(self.weights, cache)
        arrays = batch.arrays
        # Named, so that they live until the call is over.
        cos, sin = self._rotary.cos_sin(arrays.positions, arrays.rotary_lengths)
        native_step.step(bound.args, _batch_args(arrays, cos, sin, logits, states, counters), sampling)


def _batch_args(
    arrays: BatchArrays,
    cos: NDArray[np.float32],
    sin: NDArray[np.float32],
    logits: int | None,
    states: FinalStates | None,
    counters: StepCounters | None,
) -> native_step.BatchArgs:
    """The arrays must outlive the result."""
    num_seqs, max_blocks = arrays.block_tables.shape
    return native_step.BatchArgs(
        _address(arrays.token_ids),
        _address(cos),
        _address(sin),
        _address(arrays.slot_mapping),
        _address(arrays.query_start),
        _address(arrays.context_lens),
        _address(arrays.block_tables),
        _address(arrays.logit_rows),
        logits,
        None if states is None else _address(states.rows),
        None if states is None else states.values.data_ptr(),
        None if counters is None else counters.layers_address,
        max_blocks,
        len(arrays.token_ids),
        num_seqs,
        max_blocks,
        len(arrays.logit_rows),
        0 if states is None else len(states.rows),
    )


class _BoundDecoder:
    """The C structures of a model over one cache; they borrow the memory of both."""

    def __init__(self, weights: PackedWeights, cache: KvCache) -> None:
        config = weights.layout.config
        layers = (native_step.LayerArgs * config.num_layers)(
            *(_layer_args(weights, index, cache) for index in range(config.num_layers))
        )
        self._layers = layers
        embedding = weights.plain("embedding")
        self.args = native_step.DecoderArgs(
            ctypes.addressof(layers),
            native_linear.packed_matrix(weights.matrix("head")),
            _pointer(embedding),
            _pointer(weights.plain("norm")),
            0 if embedding is None else _DTYPES[embedding.dtype],
            config.num_layers,
            config.hidden_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.head_dim,
            config.rms_norm_eps,
        )


def _layer_args(weights: PackedWeights, index: int, cache: KvCache) -> native_step.LayerArgs:
    return native_step.LayerArgs(
        *(
            native_linear.packed_matrix(weights.matrix(f"{index}.{name}"))
            for name in ("qkv", "output", "gate_up", "down")
        ),
        *(_pointer(weights.plain(f"{index}.{name}")) for name in ("input_norm", "attention_norm", "q_norm", "k_norm")),
        native_attention.cache_args(*cache.layers[index]),
        weights.layout.config.sliding_windows[index] or 0,
    )


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _address(array: NDArray[Any]) -> int | None:
    # As native_sampling: a quarter of the time of array.ctypes.data.
    return ctypes.addressof(ctypes.c_char.from_buffer(array.data)) if array.size else None
