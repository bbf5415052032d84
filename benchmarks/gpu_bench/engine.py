"""What every contender does: decode steps of a batch, and a prefill."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Workload:
    """The same for all.

    Attributes:
        batches: sequences that decode together.
        context: tokens of each before its first decode step.
        steps: decode steps that are timed, of `warm_up` more.
        prefill: tokens of the prompt that is computed alone.
        budget: tokens of a step at most, for whoever computes prompts in chunks.
    """

    batches: tuple[int, ...]
    context: int
    steps: int
    warm_up: int
    prefill: int
    budget: int

    @property
    def mean_context(self) -> float:
        """Tokens that a timed step attends to, on average."""
        return self.context + self.warm_up + self.steps / 2

    def prompt(self, index: int, length: int, vocab_size: int) -> list[int]:
        """Random token ids, other ones for each index."""
        return np.random.default_rng(index).integers(0, vocab_size, length).tolist()


class Engine(Protocol):
    """A contender with a model on the device."""

    def decode_seconds(self, batch: int) -> float:
        """Of one decode step, averaged over `Workload.steps`."""
        ...

    def prefill_seconds(self) -> float:
        """Until the first token of a prompt of `Workload.prefill` tokens."""
        ...

    def make_room(self) -> None:
        """Gives its KV memory back: another contender needs it."""
        ...

    def close(self) -> None:
        """Gives all of its memory back."""
        ...
