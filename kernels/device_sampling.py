"""Sampling on a device without waiting for it: what goes there in one copy, and what comes back in one.

host                                         device
SamplingBatch ─ pack ─▶ words ── stage ────▶ words ─ Columns ─▶ kernels ─▶ DeviceSampledTokens.words
SampledTokens ◀─ unpack ─ words ◀─ fetch_into ──────────────────────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .sampling_batch import SampledTokens, SamplingBatch

__all__ = ["Columns", "DeviceSampledTokens", "Stage", "pack", "stage_and_wait"]

#: Copies words, int32 [any length] on the host, to the device, in the order of the current stream and without waiting.
#: What it returns holds them until everything that is launched on that stream for this call has run.
Stage = Callable[[NDArray[np.int32]], Tensor]

# Each column begins at a multiple of as many words (16 bytes), so that a kernel is compiled for that alone.
_ALIGNMENT: Final = 4


def stage_and_wait(device: torch.device) -> Stage:
    """The simplest Stage: from pageable memory, so that the host waits for the copy."""
    return lambda words: torch.from_numpy(words).to(device)


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """A SamplingBatch in int32 words.

    Attributes:
        rows: [n, 16], SAMPLING_ROW; of each, `token_row` is its place in `histories`, -1 for a row without penalties.
        histories: [p, 4], of a row with penalties: where its history begins in `token_ids`, where its output does,
            where it ends, and 0.
        token_ids: of those rows, one after the other; without prompts where only outputs count.
        bias_starts, bias_ids, bias_values, banned_starts, banned_ids: as in SamplingBatch; the values' bits.
        masks: [number of masks, words]; the bits of allowed_masks.
        reported: [r], the rows that want logprobs.

    Each is None where the batch has nothing of the kind.
    """

    rows: Any
    histories: Any = None
    token_ids: Any = None
    bias_starts: Any = None
    bias_ids: Any = None
    bias_values: Any = None
    banned_starts: Any = None
    banned_ids: Any = None
    masks: Any = None
    reported: Any = None


def pack(batch: SamplingBatch, vocab_size: int) -> tuple[NDArray[np.int32], Callable[[Tensor], Columns]]:
    """The words to stage, and what finds the columns, as tensors, in the words that were staged.

    Raises:
        ValueError: a row names something that is not there.
    """
    _check(batch, vocab_size)
    columns = _columns(batch)
    starts, length = {}, 0
    for name, column in columns.items():
        starts[name] = length
        length += -(-column.size // _ALIGNMENT) * _ALIGNMENT
    words = np.zeros(length, np.int32)
    for name, column in columns.items():
        words[starts[name] : starts[name] + column.size] = column.reshape(-1)

    def find(staged: Tensor) -> Columns:
        return Columns(
            **{name: staged[starts[name] :][: column.size].view(column.shape) for name, column in columns.items()}
        )

    return words, find


def _columns(batch: SamplingBatch) -> Mapping[str, NDArray[np.int32]]:
    rows = batch.rows.copy()
    columns: dict[str, NDArray[np.int32]] = {"rows": rows.view(np.int32).reshape(len(rows), -1)}
    penalised = _penalised(rows)
    rows["token_row"] = -1
    if len(penalised):
        rows["token_row"][penalised] = np.arange(len(penalised))
        columns["histories"], columns["token_ids"] = _histories(batch, penalised)
    if batch.bias_starts is not None and batch.bias_starts[-1] > 0:
        assert batch.bias_ids is not None and batch.bias_values is not None
        columns["bias_starts"], columns["bias_ids"] = batch.bias_starts, batch.bias_ids
        columns["bias_values"] = batch.bias_values.view(np.int32)
    short = batch.positions < rows["min_tokens"]
    if batch.banned_starts is not None and (np.diff(batch.banned_starts)[short] > 0).any():
        assert batch.banned_ids is not None
        columns["banned_starts"], columns["banned_ids"] = batch.banned_starts, batch.banned_ids
    if batch.allowed_masks is not None and (rows["mask_row"] >= 0).any():
        columns["masks"] = np.ascontiguousarray(batch.allowed_masks).view(np.int32)
    reported = np.flatnonzero(rows["num_logprobs"] >= 0)
    if len(reported):
        columns["reported"] = reported.astype(np.int32)
    return columns


def _penalised(rows: NDArray[np.void]) -> NDArray[np.int64]:
    return np.flatnonzero(
        (rows["repetition_penalty"] != 1) | (rows["frequency_penalty"] != 0) | (rows["presence_penalty"] != 0)
    )


def _histories(batch: SamplingBatch, penalised: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    histories = np.zeros((len(penalised), 4), np.int32)
    parts, length = [], 0
    for history, row in zip(histories, batch.rows[penalised], strict=True):
        # The prompt matters to the repetition penalty alone.
        first = 0 if row["repetition_penalty"] != 1 else int(row["num_prompt_tokens"])
        parts.append(batch.token_ids[row["token_row"], first : row["num_tokens"]])
        history[:3] = length, length + row["num_prompt_tokens"] - first, length + row["num_tokens"] - first
        length = int(history[2])
    return histories, np.concatenate(parts)


def _check(batch: SamplingBatch, vocab_size: int) -> None:
    rows, (num_token_rows, capacity) = batch.rows, batch.token_ids.shape
    outside = (rows["token_row"] < 0) | (rows["token_row"] >= num_token_rows) | (rows["num_prompt_tokens"] < 0)
    outside |= (rows["num_tokens"] < rows["num_prompt_tokens"]) | (rows["num_tokens"] > capacity)
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(f"rows[{row}] names tokens outside token_ids {list(batch.token_ids.shape)}: {rows[row]}")
    num_masks = 0 if batch.allowed_masks is None else len(batch.allowed_masks)
    if (rows["mask_row"] >= num_masks).any():
        raise ValueError(f"rows[{int(rows['mask_row'].argmax())}] names a row outside allowed_masks")
    _check_entries("bias", batch.bias_starts, batch.bias_ids, vocab_size)
    _check_entries("banned", batch.banned_starts, batch.banned_ids, vocab_size)


def _check_entries(name: str, starts: NDArray[np.int32] | None, ids: NDArray[np.int32] | None, vocab_size: int) -> None:
    if starts is None or ids is None:
        return
    used = ids[: starts[-1]]
    if starts[0] != 0 or (np.diff(starts) < 0).any() or (used < 0).any() or (used >= vocab_size).any():
        raise ValueError(f"{name}_starts falls, or {name}_ids has an id outside the vocabulary")


@dataclass(frozen=True, slots=True, eq=False)
class DeviceSampledTokens:
    """SampledTokens on the device, in one tensor, so that one copy fetches all of them.

    Attributes:
        words: int32 [num_words(n, m)]; what it means is what the properties cut out of it.
        num_rows: n.
        num_top: m, the most likeliest tokens that a row asked for; -1: no row wants logprobs.
    """

    words: Tensor
    num_rows: int
    num_top: int

    @staticmethod
    def num_words(num_rows: int, num_top: int) -> int:
        """How many int32 a host buffer must have room for."""
        return num_rows * (2 if num_top < 0 else 3 + 2 * num_top)

    @classmethod
    def allocate(cls, num_rows: int, num_top: int, device: torch.device) -> DeviceSampledTokens:
        """Room for a result, zero where nothing is written."""
        words = torch.zeros(cls.num_words(num_rows, num_top), dtype=torch.int32, device=device)
        return cls(words, num_rows, num_top)

    @classmethod
    def upload(cls, sampled: SampledTokens, device: torch.device) -> DeviceSampledTokens:
        """What was sampled on the host, on the device."""
        parts = [sampled.token_ids, sampled.impossible.astype(np.int32)]
        num_top = -1
        if sampled.logprobs is not None:
            assert sampled.top_token_ids is not None and sampled.top_logprobs is not None
            num_top = sampled.top_token_ids.shape[1]
            parts += [sampled.logprobs.view(np.int32), sampled.top_token_ids.reshape(-1)]
            parts += [sampled.top_logprobs.reshape(-1).view(np.int32)]
        return cls(torch.from_numpy(np.concatenate(parts)).to(device), len(sampled.token_ids), num_top)

    @property
    def token_ids(self) -> Tensor:
        """int32 [n]."""
        return self.words[: self.num_rows]

    @property
    def impossible(self) -> Tensor:
        """int32 [n]: 1 where every logit was -inf or nan, and the token is 0."""
        return self.words[self.num_rows : 2 * self.num_rows]

    @property
    def logprobs(self) -> Tensor:
        """float32 [n]; only if num_top >= 0."""
        return self.words[2 * self.num_rows : 3 * self.num_rows].view(torch.float32)

    @property
    def top_token_ids(self) -> Tensor:
        """int32 [n, m]; only if num_top >= 0."""
        return self.words[3 * self.num_rows :][: self.num_rows * self.num_top].view(self.num_rows, self.num_top)

    @property
    def top_logprobs(self) -> Tensor:
        """float32 [n, m]; only if num_top >= 0."""
        values = self.words[(3 + self.num_top) * self.num_rows :].view(torch.float32)
        return values.view(self.num_rows, self.num_top)

    def fetch_into(self, host: Tensor) -> None:
        """Copies the words to the first ones of `host`, pinned int32; launched on the current stream, not awaited."""
        host[: len(self.words)].copy_(self.words, non_blocking=True)

    def unpack(self, words: NDArray[np.int32]) -> SampledTokens:
        """What the fetched words say; arrays of their own, so that the buffer may be used again."""
        n, m = self.num_rows, self.num_top
        words = words[: self.num_words(n, m)].copy()
        token_ids, impossible = words[:n], words[n : 2 * n] != 0
        if m < 0:
            return SampledTokens(token_ids, impossible)
        top_ids, top_logprobs = words[3 * n :][: n * m], words[3 * n + n * m :]
        return SampledTokens(
            token_ids,
            impossible,
            words[2 * n : 3 * n].view(np.float32),
            top_ids.reshape(n, m),
            top_logprobs.view(np.float32).reshape(n, m),
        )
