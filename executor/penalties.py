"""Repetition, frequency and presence penalties.

Repetition: Keskar et al., "CTRL" (arXiv:1909.05858), over prompt and output. Frequency and presence: as in the
OpenAI API, over the output alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Penalties:
    """The penalties of a request; the defaults do nothing."""

    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0

    @property
    def neutral(self) -> bool:
        return self == Penalties()


class TokenCounts:
    """The distinct tokens of a sequence, and how often each occurred in its output."""

    def __init__(self, prompt: NDArray[np.int64], output: NDArray[np.int64]) -> None:
        ids = np.unique(np.concatenate((prompt, output)))
        self._positions = {token: i for i, token in enumerate(ids.tolist())}
        # One spare place, so that doubling always adds some.
        self._ids = np.append(ids, 0)
        self._counts = np.zeros(len(self._ids), np.float32)
        np.add.at(self._counts, np.searchsorted(ids, output), 1)

    @property
    def ids(self) -> NDArray[np.int64]:
        """int64 [num_distinct]: each token of prompt and output once."""
        return self._ids[: len(self._positions)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """float32 [num_distinct]: occurrences in the output; 0 for tokens of the prompt alone."""
        return self._counts[: len(self._positions)]

    def add(self, token_id: int) -> None:
        """A token was appended to the output."""
        position = self._positions.setdefault(token_id, len(self._positions))
        if position == len(self._ids):
            self._ids = np.concatenate((self._ids, np.zeros_like(self._ids)))
            self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
        self._ids[position] = token_id
        self._counts[position] += 1


class PenalisedRow(NamedTuple):
    """A row of logits and what applies to it."""

    row: int
    penalties: Penalties
    tokens: TokenCounts


def apply_penalties(logits: Tensor, rows: Iterable[PenalisedRow]) -> None:
    """Changes the logits float32 [n, vocab] in place, repetition first."""
    rows = list(rows)
    if not rows:
        return
    sizes = [len(entry.tokens.ids) for entry in rows]
    at_row = torch.from_numpy(np.repeat([entry.row for entry in rows], sizes)).to(logits.device)
    at_token = torch.from_numpy(np.concatenate([entry.tokens.ids for entry in rows])).to(logits.device)
    counts = np.concatenate([entry.tokens.counts for entry in rows])
    repetition, frequency, presence = (
        np.repeat(np.array([getattr(entry.penalties, name) for entry in rows], np.float32), sizes)
        for name in ("repetition", "frequency", "presence")
    )
    factor = torch.from_numpy(repetition).to(logits.device)
    subtracted = torch.from_numpy(frequency * counts + presence * (counts > 0)).to(logits.device)
    values = logits[at_row, at_token]
    logits[at_row, at_token] = torch.where(values > 0, values / factor, values * factor) - subtracted
