"""The sampling parameters of the sequences, by slot, as the sampler wants them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quire.executor.token_masks import Mask, mask_of, restrict
from quire.internal.v1 import executor_pb2
from quire.kernels import SAMPLING_ROW, SamplingBatch
from quire.v1 import generate_pb2

# Beyond any length and any vocabulary, and still an int32.
_LARGEST: Final = np.iinfo(np.int32).max

_Ids = NDArray[np.int32]


class SamplingTable:
    """Rows that do not change while a sequence lives, and the few lists that some requests bring."""

    def __init__(self, vocab_size: int, num_slots: int) -> None:
        self._vocab_size = vocab_size
        self._rows = np.zeros(num_slots, SAMPLING_ROW)
        self._bias: dict[int, tuple[_Ids, NDArray[np.float32]]] = {}
        # End-of-sequence and stop tokens of the sequences that have min_tokens.
        self._banned: dict[int, _Ids] = {}
        self._bad_words: dict[int, list[_Ids]] = {}
        self._allowed: dict[int, Mask] = {}

    def grow(self, num_slots: int) -> None:
        """Makes room for as many slots."""
        rows = np.zeros(num_slots, SAMPLING_ROW)
        rows[: len(self._rows)] = self._rows
        self._rows = rows

    def put(self, message: executor_pb2.NewSequence) -> None:
        """Takes a sequence's parameters; absent fields take the defaults that generate.proto names."""
        slot, params = message.slot, message.sampling_params
        self.forget(slot)
        self._rows[slot] = _row(message, self._vocab_size)
        bias = sorted((token, value) for token, value in params.logit_bias.items() if token < self._vocab_size)
        if bias:
            ids, values = zip(*bias, strict=True)
            self._bias[slot] = np.array(ids, np.int32), np.array(values, np.float32)
        if params.min_tokens:
            eos = np.frombuffer(message.eos_token_ids, "<u4")
            banned = np.union1d(eos, np.array(params.stop_token_ids, np.uint32))
            self._banned[slot] = banned[banned < self._vocab_size].astype(np.int32)
        if message.constraints.bad_words:
            words = (np.frombuffer(column, "<u4") for column in message.constraints.bad_words)
            self._bad_words[slot] = [word.astype(np.int32) for word in words if word[-1] < self._vocab_size]
        if params.allowed_token_ids:
            self._allowed[slot] = mask_of(params.allowed_token_ids, self._vocab_size)

    def forget(self, slot: int) -> None:
        """Drops a sequence's lists."""
        for lists in (self._bias, self._banned, self._bad_words, self._allowed):
            lists.pop(slot, None)

    def reads_history(self, slots: NDArray[np.int64]) -> bool:
        """Whether a row of `batch` depends on what its sequence consists of: by penalties or bad words."""
        rows = self._rows.take(slots)
        penalised = rows["repetition_penalty"] != 1
        penalised |= (rows["frequency_penalty"] != 0) | (rows["presence_penalty"] != 0)
        return bool(penalised.any()) or any(slot in self._bad_words for slot in slots.tolist())

    def batch(self, slots: NDArray[np.int64], num_tokens: NDArray[np.int64], token_ids: _Ids) -> SamplingBatch:
        """The rows of `slots`.

        Args:
            slots: [n].
            num_tokens: [n], of prompt and output so far.
            token_ids: [num_slots, capacity], prompts and outputs by slot.
        """
        rows = self._rows.take(slots)  # far faster than indexing, for records
        rows["num_tokens"] = num_tokens
        lists: dict[str, Any] = {}
        if self._bias:
            lists["bias_starts"], entries = _select(self._bias, slots)
            lists["bias_ids"] = np.concatenate([np.empty(0, np.int32), *(ids for ids, _ in entries)])
            lists["bias_values"] = np.concatenate([np.empty(0, np.float32), *(values for _, values in entries)])
        if self._banned or self._bad_words:
            banned_now = self._banned | self._bad_words_now(rows, slots, token_ids)
            lists["banned_starts"], banned = _select({slot: (ids,) for slot, ids in banned_now.items()}, slots)
            lists["banned_ids"] = np.concatenate([np.empty(0, np.int32), *(ids for (ids,) in banned)])
        batch = SamplingBatch(rows, token_ids, **lists)
        if not self._allowed:
            return batch
        masks = {row: self._allowed[slot] for row, slot in enumerate(slots.tolist()) if slot in self._allowed}
        return restrict(batch, masks)

    def _bad_words_now(self, rows: NDArray[np.void], slots: NDArray[np.int64], token_ids: _Ids) -> dict[int, _Ids]:
        """What the sequences with bad words must not get next, by slot; all that is banned for another reason too."""
        banned_now: dict[int, _Ids] = {}
        for row, slot in enumerate(slots.tolist()):
            if (words := self._bad_words.get(slot)) is None:
                continue
            start, end = rows["num_prompt_tokens"][row], rows["num_tokens"][row]
            banned = _last_of_begun(words, token_ids[slot, start:end])
            if slot in self._banned and end - start < rows["min_tokens"][row]:
                banned = np.union1d(banned, self._banned[slot])
            banned_now[slot] = banned
            # The sampler bans below min_tokens; this list is right at any length.
            rows["min_tokens"][row] = _LARGEST
        return banned_now


def _row(message: executor_pb2.NewSequence, vocab_size: int) -> tuple[float | int, ...]:
    """A SAMPLING_ROW without its num_tokens."""
    params: generate_pb2.SamplingParams = message.sampling_params
    return (
        params.seed,
        params.temperature if params.HasField("temperature") else 1.0,
        params.top_p if params.HasField("top_p") else 1.0,
        params.min_p,
        params.repetition_penalty if params.HasField("repetition_penalty") else 1.0,
        params.frequency_penalty,
        params.presence_penalty,
        params.top_k if params.top_k < vocab_size else 0,
        min(params.logprobs, vocab_size) if params.HasField("logprobs") else -1,
        message.sequence_index,
        min(params.min_tokens, _LARGEST),
        len(message.prompt_token_ids) // 4,
        0,
        message.slot,
        -1,
    )


def _last_of_begun(words: list[_Ids], output: _Ids) -> _Ids:
    """The last token of each word whose other tokens are the latest of the output."""
    begun = [word[-1] for word in words if _ends_with(output, word[:-1])]
    return np.unique(np.array(begun, np.int32))


def _ends_with(output: _Ids, tail: _Ids) -> bool:
    return len(tail) <= len(output) and np.array_equal(output[len(output) - len(tail) :], tail)


def _select(lists: Mapping[int, tuple[Any, ...]], slots: NDArray[np.int64]) -> tuple[_Ids, list[tuple[Any, ...]]]:
    """Where each row's entries start, [n + 1], and the lists of the rows that have one, in their order."""
    found = [lists.get(slot) for slot in slots.tolist()]
    starts = np.zeros(len(slots) + 1, np.int32)
    np.cumsum([0 if entry is None else len(entry[0]) for entry in found], out=starts[1:])
    return starts, [entry for entry in found if entry is not None]
