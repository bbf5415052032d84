"""Logprobs of given tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quire import kernels


def test_they_are_the_log_softmax() -> None:
    logits = torch.randn(7, 33, generator=torch.Generator().manual_seed(1))
    token_ids = np.arange(7, dtype=np.int32) * 3
    scores = kernels.score_tokens(logits, token_ids, 4)
    expected = torch.log_softmax(logits.double(), dim=-1)
    np.testing.assert_allclose(scores.logprobs, expected[torch.arange(7), torch.from_numpy(token_ids)], atol=1e-6)
    values, ids = expected.topk(4)
    np.testing.assert_array_equal(scores.top_token_ids, ids)
    np.testing.assert_allclose(scores.top_logprobs, values, atol=1e-6)


def test_more_than_there_are_means_all() -> None:
    scores = kernels.score_tokens(torch.zeros(2, 5), np.zeros(2, np.int32), 9)
    assert scores.top_token_ids.shape == (2, 5)
    assert kernels.score_tokens(torch.zeros(2, 5), np.zeros(2, np.int32), 0).top_logprobs.shape == (2, 0)


def test_what_is_no_number_is_impossible() -> None:
    logits = torch.tensor([[0.0, torch.nan, -torch.inf], [torch.nan] * 3])
    scores = kernels.score_tokens(logits, np.array([1, 2], np.int32), 1)
    assert scores.logprobs.tolist() == [-np.inf, -np.inf]
    assert scores.top_logprobs[0, 0] == 0.0


def test_logits_and_tokens_must_fit() -> None:
    with pytest.raises(ValueError, match=r"float32 \[3, vocab\]"):
        kernels.score_tokens(torch.zeros(2, 5), np.zeros(3, np.int32), 1)
