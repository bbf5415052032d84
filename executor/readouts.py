"""What steps give besides sampled tokens: logprobs of prompts, and embeddings.

Both are read off final states, [hidden] for each token: what the last layer leaves, after the last norm. The forward
pass writes those that are wanted; requests that want none cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire import kernels
from quire.errors import QuireError
from quire.internal.v1 import executor_pb2
from quire.v1 import generate_pb2

# Positions of a prompt whose logits exist at a time: a chunk of a long prompt times the vocabulary would be gigabytes.
_LOGIT_ROWS: Final = 64

# float32 [n, hidden] final states → float32 [n, vocab] logits.
Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class FinalStates:
    """The final states that are wanted of a step, in memory that the forward pass writes.

    Attributes:
        rows: int32 [n], contiguous: tokens of the batch.
        values: float32 [n, hidden], contiguous, on the model's device.
        staged_rows: `rows` there, where they were brought there already.
    """

    rows: NDArray[np.int32]
    values: Tensor
    staged_rows: Tensor | None = None

    def rows_on_device(self) -> Tensor:
        """int32 [n]."""
        return torch.from_numpy(self.rows).to(self.values.device) if self.staged_rows is None else self.staged_rows


class Readout(Protocol):
    """What one sequence wants of the steps that compute it."""

    def wanted(self, start: int, end: int) -> range:
        """Positions whose final states it reads, of a step that computes positions start to end - 1.

        Asked once for each step, in their order; several may be in flight before the first is read.
        """

    def read(self, start: int, states: Tensor, head: Head, result: executor_pb2.StepResult) -> None:
        """Takes the states [n, hidden] of what was wanted, from position `start` on, and adds to the result."""


class PromptLogprobs:
    """Logprobs of a prompt's tokens from the second on; the states of one position predict the next."""

    def __init__(self, slot: int, prompt: NDArray[np.int32], num_top: int) -> None:
        self._slot = slot
        self._prompt = prompt
        self._num_top = num_top

    def wanted(self, start: int, end: int) -> range:
        return range(start, min(end, len(self._prompt) - 1))

    def read(self, start: int, states: Tensor, head: Head, result: executor_pb2.StepResult) -> None:
        entry = result.prompt_logprobs.add(slot=self._slot, start=start + 1)
        for first in range(0, len(states), _LOGIT_ROWS):
            some = states[first : first + _LOGIT_ROWS]
            next_ids = self._prompt[start + 1 + first :][: len(some)]
            scores = kernels.score_tokens(head(some), next_ids, self._num_top)
            top = zip(scores.top_token_ids.tolist(), scores.top_logprobs.tolist(), strict=True)
            for logprob, (ids, logprobs) in zip(scores.logprobs.tolist(), top, strict=True):
                entry.positions.add(logprob=logprob, top_token_ids=ids, top_logprobs=logprobs)


class LastState:
    """An embedding: the state of the last token."""

    def __init__(self, slot: int, num_tokens: int) -> None:
        self._slot = slot
        self._num_tokens = num_tokens

    def wanted(self, start: int, end: int) -> range:
        return range(max(start, self._num_tokens - 1), end)

    def read(self, start: int, states: Tensor, head: Head, result: executor_pb2.StepResult) -> None:
        result.embeddings.add(slot=self._slot, values=states.cpu().numpy().astype("<f4").tobytes())


class MeanState:
    """An embedding: the mean of all tokens' states.

    They are added one after another in float64, so that no bit depends on how the prompt was cut into chunks.
    """

    def __init__(self, slot: int, num_tokens: int) -> None:
        self._slot = slot
        self._num_tokens = num_tokens
        # Of the prompt: asked for, and added to the sum.
        self._num_wanted = 0
        self._num_added = 0
        self._sum: NDArray[np.float64] | None = None

    def wanted(self, start: int, end: int) -> range:
        if start != self._num_wanted:
            raise QuireError(
                f"the plan computes tokens from {start} of slot {self._slot}, whose mean has {self._num_wanted}"
            )
        self._num_wanted = end
        return range(start, end)

    def read(self, start: int, states: Tensor, head: Head, result: executor_pb2.StepResult) -> None:
        rows = states.cpu().numpy()
        total = np.zeros(rows.shape[1]) if self._sum is None else self._sum
        for row in rows:
            total += row
        self._sum = total
        self._num_added += len(rows)
        if self._num_added == self._num_tokens:
            mean = (total / self._num_tokens).astype("<f4")
            result.embeddings.add(slot=self._slot, values=mean.tobytes())


def readout_of(message: executor_pb2.NewSequence) -> Readout | None:
    """What a new sequence wants besides sampled tokens. Raises QuireError for a pooling that is not known."""
    num_tokens = len(message.prompt_token_ids) // 4
    match message.pooling:
        case generate_pb2.POOLING_TYPE_LAST:
            return LastState(message.slot, num_tokens)
        case generate_pb2.POOLING_TYPE_MEAN:
            return MeanState(message.slot, num_tokens)
        case generate_pb2.POOLING_TYPE_UNSPECIFIED:
            if not message.sampling_params.HasField("prompt_logprobs"):
                return None
            prompt = np.frombuffer(message.prompt_token_ids, "<u4").astype(np.int32)
            return PromptLogprobs(message.slot, prompt, message.sampling_params.prompt_logprobs)
    raise QuireError(f"the plan asks slot {message.slot} for pooling {message.pooling}, which is not known")


class StepReadouts:
    """The readouts of one step, and the states that they wait for."""

    def __init__(self, spans: list[tuple[Readout, range]], states: FinalStates) -> None:
        """Use `plan_readouts`."""
        self._spans = spans
        self.states = states

    def report(self, head: Head, result: executor_pb2.StepResult) -> None:
        """Adds what the written states tell to the result."""
        first = 0
        for readout, positions in self._spans:
            readout.read(positions.start, self.states.values[first : first + len(positions)], head, result)
            first += len(positions)


def plan_readouts(
    readouts: Mapping[int, Readout],
    slots: NDArray[np.int64],
    computed: NDArray[np.int64],
    query_lengths: NDArray[np.int64],
    new_states: Callable[[int], Tensor],
) -> StepReadouts | None:
    """What is read of a step; None if nothing is.

    Args:
        readouts: by slot.
        slots: [num_rows], the plan's column.
        computed: likewise.
        query_lengths: likewise.
        new_states: float32 [n, hidden] on the model's device, from n.
    """
    if not readouts:
        return None
    spans, rows, first = [], [], 0
    for slot, start, length in zip(slots.tolist(), computed.tolist(), query_lengths.tolist(), strict=True):
        if (readout := readouts.get(slot)) is not None and (wanted := readout.wanted(start, start + length)):
            spans.append((readout, wanted))
            rows.append(np.arange(wanted.start, wanted.stop, dtype=np.int32) + np.int32(first - start))
        first += length
    if not spans:
        return None
    at = np.concatenate(rows)
    return StepReadouts(spans, FinalStates(at, new_states(len(at))))
