"""Logits → token ids and logprobs: the public function.

The order is vLLM's: logprobs of the untouched logits; logit bias; banned tokens (below min_tokens) and tokens outside
a row's mask to -inf; penalties; temperature; min_p; top_k; top_p; a draw.

Repetition penalty: Keskar et al., "CTRL" (arXiv:1909.05858), over prompt and output. Frequency and presence: as in
the OpenAI API, over the output alone.

Each filter is a lower bound on a token's probability, so that tokens of equal probability stay or go together and
no order among them matters: min_p keeps p ≥ min_p · max p, top_k keeps p ≥ the k-th largest, and top_p
(nucleus sampling, arXiv:1904.09751) keeps the most likely tokens down to the one with which their sum reaches
top_p of what min_p and top_k left. The draw inverts the distribution function over token ids in their natural
order, in float64, at the uniform number of (seed, sequence, position): see `philox`.

A logit that is nan counts as -inf; one that is +inf is certain. A row's result does not depend on the other rows.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import native_sampling, torch_sampling
from .backend import implementation_for
from .device_sampling import DeviceSampledTokens, Stage, stage_and_wait
from .sampling_batch import SAMPLING_ROW, SampledTokens, SamplingBatch

__all__ = ["sample", "sample_on_device"]


def sample(logits: Tensor, batch: SamplingBatch) -> SampledTokens:
    """Sample one token for each row.

    Args:
        logits: float32 [n, vocab], last dimension contiguous. Overwritten.
        batch: the n rows.

    Raises:
        ValueError: an argument has the wrong dtype or shape, or names something that is not there.
    """
    implementation = implementation_for(logits.device)
    if implementation == "triton":
        sampled = sample_on_device(logits, batch, stage_and_wait(logits.device))
        return sampled.unpack(sampled.words.cpu().numpy())
    _check(logits, batch)
    return (native_sampling if implementation == "native" else torch_sampling).sample(logits, batch)


def sample_on_device(logits: Tensor, batch: SamplingBatch, stage: Stage) -> DeviceSampledTokens:
    """As `sample`, launched on the current stream and not waited for; the result stays on the device.

        sampled = sample_on_device(logits, batch, stage)
        table.index_copy_(0, slots, sampled.token_ids)   # the next step's input, if it is wanted there
        sampled.fetch_into(pinned)                       # int32 [≥ len(sampled.words)]
        ...                                              # when an event recorded here has come:
        sampled.unpack(pinned.numpy())

    Only Triton's implementation does not wait. `batch` is read before this returns, the staged words afterwards.

    Args:
        logits: float32 [n, vocab] on the device, last dimension contiguous. Overwritten.
        batch: the n rows, on the host; histories that penalties read must be complete.
        stage: takes the columns to the device, in one call for each call of this.

    Raises:
        ValueError: as `sample`.
    """
    _check(logits, batch)
    if implementation_for(logits.device) == "triton":
        from .triton import sampling as triton_sampling

        return triton_sampling.sample(logits, batch, stage)
    return DeviceSampledTokens.upload(torch_sampling.sample(logits, batch), logits.device)


def _check(logits: Tensor, batch: SamplingBatch) -> None:
    if logits.dtype != torch.float32 or logits.dim() != 2 or logits.stride(1) != 1:
        raise ValueError(f"logits must be float32 [n, vocab], contiguous in vocab, not {logits.dtype} {logits.shape}")
    if batch.rows.dtype != SAMPLING_ROW or batch.rows.shape != (logits.shape[0],):
        raise ValueError(f"rows must be SAMPLING_ROW [{logits.shape[0]}], not {batch.rows.shape}")
    if batch.token_ids.dtype != np.int32 or batch.token_ids.ndim != 2 or not batch.token_ids.flags.c_contiguous:
        raise ValueError(f"token_ids must be contiguous int32 [rows, capacity], not {batch.token_ids.dtype}")
    masks = batch.allowed_masks
    if masks is not None and (masks.dtype != np.uint32 or masks.ndim != 2 or masks.shape[1] * 32 < logits.shape[1]):
        raise ValueError(f"allowed_masks must be uint32 [rows, ≥ {logits.shape[1]} / 32], not {masks.shape}")
    _check_lists("bias", batch.bias_starts, batch.bias_ids, len(batch.rows))
    _check_lists("banned", batch.banned_starts, batch.banned_ids, len(batch.rows))
    if batch.bias_ids is not None:
        values = batch.bias_values
        if values is None or values.dtype != np.float32 or values.shape != batch.bias_ids.shape:
            raise ValueError(f"bias_values must be float32 [{len(batch.bias_ids)}]")


def _check_lists(name: str, starts: NDArray[np.int32] | None, ids: NDArray[np.int32] | None, num_rows: int) -> None:
    if starts is None:
        return
    if starts.dtype != np.int32 or starts.shape != (num_rows + 1,):
        raise ValueError(f"{name}_starts must be int32 [{num_rows + 1}], not {starts.dtype} {starts.shape}")
    if ids is None or ids.dtype != np.int32 or ids.ndim != 1 or starts[-1] > len(ids):
        raise ValueError(f"{name}_ids must be int32 [at least {starts[-1]}]")
