"""Repetition, frequency and presence penalties.

Repetition: Keskar et al., "CTRL" (arXiv:1909.05858), over prompt and output. Frequency and presence: as in the
OpenAI API, over the output alone.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    def apply(self, logits: Tensor, prompt_ids: NDArray[np.int64], output_counts: dict[int, int]) -> None:
        """Changes one row of logits in place.

        Args:
            logits: float32 [vocab].
            prompt_ids: the distinct tokens of the prompt.
            output_counts: how often each token of the output occurred.
        """
        if self.repetition != 1.0:
            seen = np.union1d(prompt_ids, np.fromiter(output_counts, np.int64, len(output_counts)))
            ids = torch.from_numpy(seen).to(logits.device)
            values = logits[ids]
            logits[ids] = torch.where(values > 0, values / self.repetition, values * self.repetition)
        if (self.frequency or self.presence) and output_counts:
            ids = torch.tensor(list(output_counts), device=logits.device)
            counts = torch.tensor(list(output_counts.values()), dtype=logits.dtype, device=logits.device)
            logits[ids] -= self.frequency * counts + self.presence
