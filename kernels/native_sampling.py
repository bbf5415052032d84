"""Native sampling: native/quire_sampling.h."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int32, c_int64, c_size_t, c_void_p
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .native_library import call, declare
from .sampling_batch import SampledTokens, SamplingBatch

__all__ = ["SamplingArgs", "sample", "sampling_args"]


class SamplingArgs(ctypes.Structure):
    """quire_sampling_args of native/quire_sampling.h, field by field."""

    _fields_: ClassVar = [
        ("logits", c_void_p),
        ("logits_stride", c_int64),
        ("rows", c_void_p),
        ("token_ids", c_void_p),
        ("token_stride", c_int64),
        ("allowed_masks", c_void_p),
        ("mask_stride", c_int64),
        ("bias_starts", c_void_p),
        ("bias_ids", c_void_p),
        ("bias_values", c_void_p),
        ("banned_starts", c_void_p),
        ("banned_ids", c_void_p),
        ("sampled", c_void_p),
        ("impossible", c_void_p),
        ("logprobs", c_void_p),
        ("top_ids", c_void_p),
        ("top_logprobs", c_void_p),
        ("top_stride", c_int64),
        ("num_rows", c_int32),
        ("vocab_size", c_int32),
        ("num_token_rows", c_int32),
        ("num_mask_rows", c_int32),
    ]


declare("quire_sample", c_int32, c_void_p, c_char_p, c_size_t)


def sample(logits: Tensor, batch: SamplingBatch) -> SampledTokens:
    """As `sampling.sample`; what rows name is checked in C++."""
    args, sampled = sampling_args(batch, logits.data_ptr(), logits.stride(0), logits.shape[1])
    call("quire_sample", byref(args))
    return sampled


def sampling_args(
    batch: SamplingBatch, logits: int | None, logits_stride: int, vocab_size: int
) -> tuple[SamplingArgs, SampledTokens]:
    """The arguments of a call, and the arrays that it will write.

    They hold addresses of the arrays of `batch` and of the result, which must outlive the call.

    Args:
        batch: the rows.
        logits: address of float32 [n, vocab_size], whose rows are `logits_stride` elements apart; None within a step.
        logits_stride: see there.
        vocab_size: see there.
    """
    num_rows = len(batch.rows)
    most = int(np.maximum.reduce(batch.rows["num_logprobs"])) if num_rows else -1
    sampled = SampledTokens(np.empty(num_rows, np.int32), np.empty(num_rows, np.bool_))
    if most >= 0:
        sampled = SampledTokens(
            sampled.token_ids,
            sampled.impossible,
            np.zeros(num_rows, np.float32),
            np.zeros((num_rows, most), np.int32),
            np.zeros((num_rows, most), np.float32),
        )
    masks = batch.allowed_masks
    return (
        SamplingArgs(
            logits,
            logits_stride,
            _address(batch.rows),
            _address(batch.token_ids),
            batch.token_ids.shape[1],
            _address(masks),
            0 if masks is None else masks.shape[1],
            _address(batch.bias_starts),
            _address(batch.bias_ids),
            _address(batch.bias_values),
            _address(batch.banned_starts),
            _address(batch.banned_ids),
            _address(sampled.token_ids),
            _address(sampled.impossible),
            _address(sampled.logprobs),
            _address(sampled.top_token_ids),
            _address(sampled.top_logprobs),
            max(most, 0),
            num_rows,
            vocab_size,
            batch.token_ids.shape[0],
            0 if masks is None else masks.shape[0],
        ),
        sampled,
    )


def _address(array: NDArray[Any] | None) -> int | None:
    if array is None or not array.size:
        return None
    if not array.flags.writeable:
        return array.ctypes.data
    # A quarter of that time, which counts beside a step of a small model.
    return ctypes.addressof(ctypes.c_char.from_buffer(array.data))
