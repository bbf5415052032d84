"""Sampling by Triton: which kernels a batch needs, and their working memory.

    add_bias, ban_tokens, count_tokens   only where a row has such lists, or penalties
    edit_and_find_maxima                 always: [n, chunks]
    measure                              where a row draws: [n, chunks]
    gather                               where a drawing row has filters: [n, chunks]
    choose                               always: [n]
    summarize_chunks, report             where a row wants logprobs: [r, chunks], [r]

A vocabulary is cut into chunks of a size that follows from the vocabulary alone, and what chunks find is put together
by maxima and by sums of integers, in any order the same. So a row's token does not depend on the other rows, nor on
how many programs a GPU runs at a time.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from ..device_sampling import Columns, DeviceSampledTokens, Stage, pack
from ..sampling_batch import SamplingBatch
from .launch import launch
from .sampling_candidates import LEVELS, gather, measure
from .sampling_choice import choose
from .sampling_edits import add_bias, ban_tokens, count_tokens, edit_and_find_maxima
from .sampling_logprobs import report, summarize_chunks
from .sampling_rows import MAX_VOCAB_SIZE

__all__ = ["sample"]

# Tokens of a chunk, at most: 16 for each thread.
_CHUNK: Final = 4096
_NUM_WARPS: Final = 8
# What filters leave of a vocabulary is seldom more; if it is, a slower way is taken.
_CANDIDATES: Final = 2048
_ENTRIES: Final = 128
_HISTORY_TOKENS: Final = 1024
# Programs that share a history.
_HISTORY_PARTS: Final = 8


def sample(logits: Tensor, batch: SamplingBatch, stage: Stage) -> DeviceSampledTokens:
    """As `kernels.sample_on_device`.

    Limit: the logits. A greedy row reads them once, a drawn one twice: 4 bytes × n × vocab × 1 or 2 over the
    bandwidth. 64 rows of 151,936 are 39 MB, which an H100's cache holds; what comes from there is faster. A few rows
    are bound by the latency of two to four launches instead.
    """
    num_rows, vocab_size = logits.shape
    if vocab_size > MAX_VOCAB_SIZE:
        raise ValueError(f"a vocabulary of {vocab_size} tokens is too large: at most {MAX_VOCAB_SIZE}")
    most = int(batch.rows["num_logprobs"].max(initial=-1))
    sampled = DeviceSampledTokens.allocate(num_rows, most, logits.device)
    if num_rows == 0:
        return sampled
    words, find = pack(batch, vocab_size)
    columns = find(stage(words))
    # The edits overwrite what logprobs are of.
    unedited = None if columns.reported is None else logits.index_select(0, columns.reported)
    _Sampler(logits, batch, columns).choose(sampled)
    if unedited is not None:
        _report(unedited, columns, sampled)
    return sampled


class _Sampler:
    """The launches of one call, in order, and what they hand to each other."""

    def __init__(self, logits: Tensor, batch: SamplingBatch, columns: Columns) -> None:
        self._logits, self._batch, self._columns = logits, batch, columns
        self._num_rows, self._vocab_size = logits.shape
        self._chunk = _chunk_of(self._vocab_size)
        self._num_chunks = triton.cdiv(self._vocab_size, self._chunk)
        parameters = (columns.rows, columns.rows.view(torch.float32))
        self._rows = (logits, logits.stride(0), self._vocab_size, *parameters)
        self._grid = (self._num_rows, self._num_chunks)
        self._sizes = {"CHUNK": self._chunk, "CHUNKS": triton.next_power_of_2(self._num_chunks)}

    def choose(self, sampled: DeviceSampledTokens) -> None:
        drawn = self._batch.rows["temperature"] > 0
        filtered = drawn & _filters(self._batch.rows, self._vocab_size)
        maxima, positions = self._edit()
        # What no row of this batch needs is empty.
        num_measured = self._num_rows if drawn.any() else 0
        num_gathered = self._num_rows if filtered.any() else 0
        counts = self._empty(torch.int32, num_measured, self._num_chunks, LEVELS.value)
        masses = self._empty(torch.int64, num_measured, self._num_chunks, LEVELS.value)
        candidates = (
            self._empty(torch.float32, num_gathered, _CANDIDATES),
            self._empty(torch.int32, num_gathered, _CANDIDATES),
            self._empty(torch.int32, num_gathered),
        )
        sizes = self._sizes | {"CANDIDATES": _CANDIDATES}
        if num_measured:
            launch(measure, self._grid, *self._rows, maxima, counts, masses, num_warps=_NUM_WARPS, **self._sizes)
        if num_gathered:
            found = (maxima, counts, masses, *candidates)
            launch(gather, self._grid, *self._rows, *found, num_warps=_NUM_WARPS, **sizes)
        arguments = (maxima, positions, masses, *candidates, sampled.words, *self._grid)
        launch(choose, (self._num_rows,), *self._rows, *arguments, num_warps=_NUM_WARPS, **sizes)

    def _edit(self) -> tuple[Tensor, Tensor]:
        """Edits the logits; their maxima, float32 [n, chunks], and where each first stands, int32."""
        columns, logits, stride = self._columns, self._logits, self._logits.stride(0)
        grid = (self._num_rows,)
        if columns.bias_starts is not None:
            lists = (columns.bias_starts, columns.bias_ids, columns.bias_values)
            launch(add_bias, grid, logits, stride, *lists, num_warps=4, BLOCK=_ENTRIES)
        if columns.banned_starts is not None:
            lists = (columns.rows, columns.banned_starts, columns.banned_ids)
            launch(ban_tokens, grid, logits, stride, *lists, num_warps=4, BLOCK=_ENTRIES)
        masks = self._empty(torch.int32, 0, 0) if columns.masks is None else columns.masks
        maxima, positions = self._empty(torch.float32, *self._grid), self._empty(torch.int32, *self._grid)
        arguments = (*self._rows, masks, masks.shape[1], self._count_tokens(), maxima, positions)
        launch(edit_and_find_maxima, self._grid, *arguments, num_warps=_NUM_WARPS, CHUNK=self._chunk)
        return maxima, positions

    def _count_tokens(self) -> Tensor:
        """int32 [rows with penalties, vocab]: their histories."""
        columns = self._columns
        num_histories = 0 if columns.histories is None else len(columns.histories)
        counts = torch.zeros(num_histories, self._vocab_size, dtype=torch.int32, device=self._logits.device)
        if num_histories:
            arguments = (columns.histories, columns.token_ids, counts, self._vocab_size)
            launch(count_tokens, (num_histories, _HISTORY_PARTS), *arguments, num_warps=4, BLOCK=_HISTORY_TOKENS)
        return counts

    def _empty(self, dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self._logits.device)


def _report(unedited: Tensor, columns: Columns, sampled: DeviceSampledTokens) -> None:
    """Writes the logprobs of the rows that asked, whose logits float32 [r, vocab] these are."""
    (num_reported, vocab_size), device = unedited.shape, unedited.device
    chunk = _chunk_of(vocab_size)
    num_chunks = triton.cdiv(vocab_size, chunk)
    maxima = torch.empty(num_reported, num_chunks, dtype=torch.float32, device=device)
    sums = torch.empty_like(maxima)
    kept = min(sampled.num_top, chunk)
    tops = torch.empty(num_reported, num_chunks, kept, dtype=torch.int64, device=device)
    shared = (unedited, vocab_size, columns.rows, columns.reported, maxima, sums, tops, sampled.num_top)
    launch(summarize_chunks, (num_reported, num_chunks), *shared, num_warps=_NUM_WARPS, CHUNK=chunk)
    sizes = {"CHUNK": chunk, "CHUNKS": triton.next_power_of_2(num_chunks)}
    launch(report, (num_reported,), *shared, sampled.words, sampled.num_rows, num_chunks, num_warps=1, **sizes)


def _chunk_of(vocab_size: int) -> int:
    return min(_CHUNK, max(128, triton.next_power_of_2(vocab_size)))


def _filters(rows: NDArray[np.void], vocab_size: int) -> NDArray[np.bool_]:
    """As `sampling_rows.filters`, bool [n]."""
    limited = (rows["top_k"] > 0) & (rows["top_k"] < vocab_size)
    return np.asarray(limited | (rows["top_p"] < 1) | (rows["min_p"] > 0))
