"""The call that computes a whole step: native/quire_step.h."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_float, c_int32, c_int64, c_size_t, c_void_p
from typing import ClassVar

from .native_library import CacheArgs, call, declare
from .native_linear import PackedMatrix
from .native_sampling import SamplingArgs

__all__ = ["BatchArgs", "DecoderArgs", "LayerArgs", "step"]


class LayerArgs(ctypes.Structure):
    """quire_layer of native/quire_step.h, field by field."""

    _fields_: ClassVar = [
        ("qkv", PackedMatrix),
        ("output", PackedMatrix),
        ("gate_up", PackedMatrix),
        ("down", PackedMatrix),
        ("input_norm", c_void_p),
        ("attention_norm", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("cache", CacheArgs),
        ("sliding_window", c_int64),
    ]


class DecoderArgs(ctypes.Structure):
    """quire_decoder, as above."""

    _fields_: ClassVar = [
        ("layers", c_void_p),
        ("head", PackedMatrix),
        ("embedding", c_void_p),
        ("norm", c_void_p),
        ("embedding_dtype", c_int32),
        ("num_layers", c_int32),
        ("hidden", c_int32),
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("rotary_dim", c_int32),
        ("rms_norm_eps", c_float),
    ]


class BatchArgs(ctypes.Structure):
    """quire_batch, as above."""

    _fields_: ClassVar = [
        ("token_ids", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("slot_mapping", c_void_p),
        ("query_start", c_void_p),
        ("context_lens", c_void_p),
        ("block_tables", c_void_p),
        ("logit_rows", c_void_p),
        ("logits", c_void_p),
        ("state_rows", c_void_p),
        ("states", c_void_p),
        ("layers_computed", c_void_p),
        ("block_table_stride", c_int64),
        ("num_tokens", c_int32),
        ("num_seqs", c_int32),
        ("max_blocks", c_int32),
        ("num_logit_rows", c_int32),
        ("num_state_rows", c_int32),
    ]


declare("quire_step", c_int32, c_void_p, c_void_p, c_void_p, c_char_p, c_size_t)


def step(decoder: DecoderArgs, batch: BatchArgs, sampling: SamplingArgs | None) -> None:
    """Compute the batch, and choose a token for each of its logit rows if there is a `sampling`.

    Raises:
        ValueError: a token, length, slot, block or sampling row names something that is not there.
    """
    call("quire_step", byref(decoder), byref(batch), None if sampling is None else byref(sampling))
