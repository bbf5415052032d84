"""Sampling's kernels at Qwen3's vocabulary: they compile, and everything a row needs stays in registers."""

from __future__ import annotations

import torch
from support.sampling import make_batch

from quire import kernels

VOCAB_SIZE = 151936

PLANS = [
    {"temperature": 0.0},
    {"seed": 1},
    {"top_k": 20, "top_p": 0.95, "min_p": 0.01},
    {"num_logprobs": 5, "bias": {3: 1.0}, "banned": [4], "min_tokens": 9},
    {"allowed": [5, 6], "repetition_penalty": 1.1, "num_logprobs": 20},
]


def test_no_kernel_spills(compiled):
    kernels.sample_on_device(torch.zeros(len(PLANS), VOCAB_SIZE), make_batch(PLANS, VOCAB_SIZE), torch.from_numpy)
    assert {code.name for code in compiled} == {
        "add_bias",
        "ban_tokens",
        "count_tokens",
        "edit_and_find_maxima",
        "measure",
        "gather",
        "choose",
        "summarize_chunks",
        "report",
    }
    assert {code.name: code.spills for code in compiled if code.spills} == {}
