"""What the executor keeps of a sequence between steps: its tokens, its block table, how it is sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quire.errors import QuireError
from quire.executor.penalties import Penalties, TokenCounts
from quire.internal.v1 import executor_pb2
from quire.v1 import generate_pb2

_SPARE: Final = 64


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """A request's SamplingParams as the sampler needs them: all values set, token ids within the vocabulary."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    penalties: Penalties
    bias_ids: NDArray[np.int64]
    bias_values: NDArray[np.float32]
    min_tokens: int
    # End-of-sequence and stop tokens: not sampled while the output has fewer than min_tokens tokens.
    stop_ids: NDArray[np.int64]
    # Number of most likely tokens to report; None: no logprobs at all.
    logprobs: int | None

    @classmethod
    def of(cls, params: generate_pb2.SamplingParams, eos_token_ids: NDArray[np.int64], vocab_size: int) -> SamplingPlan:
        """Absent fields take the defaults that generate.proto names."""
        bias = {token: value for token, value in params.logit_bias.items() if token < vocab_size}
        stop_ids = np.union1d(eos_token_ids, np.array(params.stop_token_ids, dtype=np.int64))
        return cls(
            temperature=params.temperature if params.HasField("temperature") else 1.0,
            top_k=params.top_k if params.top_k < vocab_size else 0,
            top_p=params.top_p if params.HasField("top_p") else 1.0,
            min_p=params.min_p,
            seed=params.seed,
            penalties=Penalties(
                params.repetition_penalty if params.HasField("repetition_penalty") else 1.0,
                params.frequency_penalty,
                params.presence_penalty,
            ),
            bias_ids=np.fromiter(bias.keys(), np.int64, len(bias)),
            bias_values=np.fromiter(bias.values(), np.float32, len(bias)),
            min_tokens=params.min_tokens,
            stop_ids=stop_ids[stop_ids < vocab_size],
            logprobs=params.logprobs if params.HasField("logprobs") else None,
        )

    @property
    def filtered(self) -> bool:
        """Whether top_k, top_p or min_p excludes tokens."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0


class Sequence:
    """One continuation of one request."""

    def __init__(self, message: executor_pb2.NewSequence, vocab_size: int) -> None:
        prompt = np.frombuffer(message.prompt_token_ids, dtype="<u4").astype(np.int64)
        output = np.frombuffer(message.output_token_ids, dtype="<u4").astype(np.int64)
        self.slot = message.slot
        self.index = message.sequence_index
        self.num_prompt_tokens = len(prompt)
        self.num_tokens = len(prompt) + len(output)
        self.sampling = SamplingPlan.of(
            message.sampling_params, np.frombuffer(message.eos_token_ids, "<u4").astype(np.int64), vocab_size
        )
        self._tokens = np.concatenate((prompt, output, np.zeros(_SPARE, np.int64)))
        self._blocks = np.zeros(_SPARE, np.int32)
        self.num_blocks = 0
        # Only penalties want to know.
        self.token_counts = None if self.sampling.penalties.neutral else TokenCounts(prompt, output)

    @property
    def num_output_tokens(self) -> int:
        return self.num_tokens - self.num_prompt_tokens

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Prompt and output: int64 [num_tokens]."""
        return self._tokens[: self.num_tokens]

    @property
    def block_table(self) -> NDArray[np.int32]:
        """int32 [num_blocks]."""
        return self._blocks[: self.num_blocks]

    def append_token(self, token_id: int) -> None:
        """A token was sampled."""
        if self.num_tokens == len(self._tokens):
            self._tokens = np.concatenate((self._tokens, np.zeros_like(self._tokens)))
        self._tokens[self.num_tokens] = token_id
        self.num_tokens += 1
        if self.token_counts is not None:
            self.token_counts.add(token_id)

    def update_blocks(self, kept: int, appended: NDArray[np.uint32]) -> None:
        """Keeps the first `kept` blocks and appends others. Raises QuireError if there are fewer."""
        if kept > self.num_blocks:
            raise QuireError(f"the plan keeps {kept} blocks of slot {self.slot}, which has {self.num_blocks}")
        end = kept + len(appended)
        if end > len(self._blocks):
            self._blocks = np.concatenate((self._blocks, np.zeros(max(end, len(self._blocks)), np.int32)))
        self._blocks[kept:end] = appended
        self.num_blocks = end


class SequenceTable:
    """The sequences by slot."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._sequences: dict[int, Sequence] = {}

    def __getitem__(self, slot: int) -> Sequence:
        sequence = self._sequences.get(slot)
        if sequence is None:
            raise QuireError(f"the plan names slot {slot}, which holds no sequence")
        return sequence

    def __len__(self) -> int:
        return len(self._sequences)

    def apply(self, plan: executor_pb2.StepPlan) -> None:
        """Forgets finished sequences and takes in new ones; a new one replaces what its slot held."""
        for slot in np.frombuffer(plan.finished_slots, dtype="<u4").tolist():
            self._sequences.pop(slot, None)
        for message in plan.new_sequences:
            self._sequences[message.slot] = Sequence(message, self._vocab_size)

    def clear(self) -> None:
        self._sequences.clear()
