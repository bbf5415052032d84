"""A request's parameters → the rows that the sampler reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import NoBadWordsLogitsProcessor

from quire import kernels
from quire.columns import pack_u32
from quire.executor.sampling_table import SamplingTable
from quire.internal.v1 import executor_pb2
from quire.kernels import SamplingBatch
from quire.v1 import generate_pb2

VOCAB = 100


def put(table: SamplingTable, slot: int, *, eos: tuple[int, ...] = (), index: int = 0, **params: Any) -> None:
    table.put(
        executor_pb2.NewSequence(
            slot=slot,
            sequence_index=index,
            prompt_token_ids=pack_u32([1, 2, 3]),
            output_token_ids=pack_u32([4]),
            sampling_params=generate_pb2.SamplingParams(**params),
            eos_token_ids=pack_u32(eos),
        )
    )


def batch_of(table: SamplingTable, *slots: int) -> SamplingBatch:
    return table.batch(np.array(slots), np.array([4] * len(slots)), np.zeros((8, 9), np.int32))


def test_absent_fields_take_their_defaults() -> None:
    table = SamplingTable(VOCAB, 8)
    put(table, 5)
    (row,) = batch_of(table, 5).rows
    assert {name: row[name].item() for name in row.dtype.names} == {
        "seed": 0,
        "temperature": 1.0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "top_k": 0,
        "num_logprobs": -1,
        "sequence_index": 0,
        "min_tokens": 0,
        "num_prompt_tokens": 3,
        "num_tokens": 4,
        "token_row": 5,
        "mask_row": -1,
    }


def test_present_fields_are_taken() -> None:
    table = SamplingTable(VOCAB, 8)
    values = {
        "temperature": 0.0,
        "top_p": 0.5,
        "min_p": 0.25,
        "repetition_penalty": 1.5,
        "frequency_penalty": 0.75,
        "presence_penalty": -0.5,
        "top_k": 99,
        "min_tokens": 7,
        "seed": 2**64 - 1,
    }
    put(table, 0, index=2, logprobs=0, **values)
    (row,) = batch_of(table, 0).rows
    assert {name: row[name].item() for name in values} == values
    assert (row["num_logprobs"], row["sequence_index"]) == (0, 2)


def test_values_beyond_the_vocabulary_or_an_int32_mean_all_of_it() -> None:
    table = SamplingTable(VOCAB, 8)
    put(table, 0, top_k=2**32 - 1, logprobs=2**32 - 1, min_tokens=2**32 - 1)
    (row,) = batch_of(table, 0).rows
    assert (row["top_k"], row["num_logprobs"], row["min_tokens"]) == (0, VOCAB, 2**31 - 1)


def test_lists_lie_behind_one_another_in_row_order() -> None:
    table = SamplingTable(VOCAB, 8)
    put(table, 0, logit_bias={7: 1.0, 3: -2.0, VOCAB: 9.0})
    put(table, 1, min_tokens=1, stop_token_ids=[5, 9, VOCAB], eos=(5, 6))
    put(table, 2)
    put(table, 3, logit_bias={8: 4.0}, min_tokens=2, eos=(1,))
    batch = batch_of(table, 3, 2, 1, 0)
    assert batch.bias_starts is not None and batch.bias_ids is not None and batch.bias_values is not None
    assert batch.banned_starts is not None and batch.banned_ids is not None
    assert batch.bias_starts.tolist() == [0, 1, 1, 1, 3]
    assert (batch.bias_ids.tolist(), batch.bias_values.tolist()) == ([8, 3, 7], [4.0, -2.0, 1.0])
    assert batch.banned_starts.tolist() == [0, 1, 1, 4, 4]
    assert batch.banned_ids.tolist() == [1, 5, 6, 9]
    assert {array.dtype.name for array in (batch.bias_starts, batch.bias_ids, batch.banned_ids)} == {"int32"}


def test_a_slots_lists_end_with_its_sequence() -> None:
    table = SamplingTable(VOCAB, 8)
    put(table, 0, logit_bias={7: 1.0}, min_tokens=1, eos=(1,))
    put(table, 1, logit_bias={8: 1.0}, min_tokens=1, eos=(1,))
    table.forget(0)
    put(table, 1)
    batch = batch_of(table, 0, 1)
    assert batch.bias_starts is None and batch.banned_starts is None


def put_constrained(table: SamplingTable, slot: int, bad_words: list[list[int]], **params: Any) -> None:
    constraints = executor_pb2.Constraints(bad_words=[pack_u32(word) for word in bad_words])
    message = executor_pb2.NewSequence(
        slot=slot,
        prompt_token_ids=pack_u32([1, 2, 3]),
        sampling_params=generate_pb2.SamplingParams(**params),
        eos_token_ids=pack_u32([90]),
        constraints=constraints,
    )
    table.put(message)


def edited(table: SamplingTable, output: list[int]) -> torch.Tensor:
    """Zero logits after the edits of slot 2, whose prompt is 1 2 3."""
    token_ids = np.zeros((8, 32), np.int32)
    token_ids[2, : 3 + len(output)] = [1, 2, 3, *output]
    logits = torch.zeros(1, VOCAB)
    kernels.sample(logits, table.batch(np.array([2]), np.array([3 + len(output)]), token_ids))
    return logits


@pytest.mark.parametrize("output", [[], [5], [5, 6], [6, 5], [7, 5, 6], [5, 6, 7], [9, 5, 6, 7, 5]])
def test_bad_words_equal_transformers(output: list[int]) -> None:
    words = [[4], [5, 6], [5, 7], [5, 6, 7], [6, 5, 6, 7], [7, 5, 6, 8, 9], [200], [5, 200]]
    table = SamplingTable(VOCAB, 8)
    put_constrained(table, 2, words, temperature=0.0)
    known = [word for word in words if max(word) < VOCAB]
    expected = NoBadWordsLogitsProcessor(known)(torch.tensor([output], dtype=torch.long), torch.zeros(1, VOCAB))
    assert torch.equal(edited(table, output), expected)


def test_bad_words_look_at_the_output_alone() -> None:
    table = SamplingTable(VOCAB, 8)
    put_constrained(table, 2, [[3, 4]], temperature=0.0)
    assert edited(table, [])[0].isfinite().all(), "the prompt ends with 3"
    assert edited(table, [3])[0, 4] == -torch.inf


def test_bad_words_and_min_tokens_both_hold() -> None:
    table = SamplingTable(VOCAB, 8)
    put_constrained(table, 2, [[5, 6]], temperature=0.0, min_tokens=2)

    def banned(output: list[int]) -> list[int]:
        return edited(table, output)[0].isinf().nonzero()[:, 0].tolist()

    assert banned([]) == [90]
    assert banned([5]) == [6, 90]
    assert banned([5, 5]) == [6]
    assert banned([5, 7]) == []


def test_allowed_token_ids() -> None:
    table = SamplingTable(VOCAB, 8)
    put_constrained(table, 2, [[7]], temperature=0.0, allowed_token_ids=[7, 50, 99])
    assert edited(table, [])[0].isfinite().nonzero()[:, 0].tolist() == [50, 99]
    table.forget(2)
    put(table, 2)
    assert table.batch(np.array([2]), np.array([4]), np.zeros((8, 9), np.int32)).allowed_masks is None
