"""One plan for all layers of a step, against a call for each layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch

from quire import kernels
from quire.kernels.native_attention import attention_args
from quire.kernels.native_library import AttentionArgs, call

if TYPE_CHECKING:
    from .conftest import Case


@pytest.mark.parametrize(
    ("query_lens", "context_lens"),
    [([1], [3000]), ([1] * 20, [100 * i + 1 for i in range(20)]), ([300, 1, 70], [600, 1500, 70])],
)
@pytest.mark.parametrize("threads", [1, 3])
def test_layers_of_a_plan_equal_single_calls(
    make_case: Callable[..., Case], query_lens: list[int], context_lens: list[int], threads: int
):
    kernels.set_num_threads(threads)
    windows = [None, 300, None, 20, 1000]
    base = make_case(query_lens, context_lens, num_kv_heads=2, group=4, head_dim=32)
    layers = [
        dataclasses.replace(
            base,
            query=base.query * (i + 1),
            key_cache=base.key_cache * (i + 1),
            value_cache=base.value_cache - i,
        )
        for i in range(len(windows))
    ]
    expected = [
        kernels.paged_attention(*layer.arguments, scale=layer.scale, sliding_window=window)
        for layer, window in zip(layers, windows, strict=True)
    ]
    outputs = [torch.full_like(layer.query, torch.nan) for layer in layers]
    args = (AttentionArgs * len(layers))(
        *(
            attention_args(layer.query, output, *layer.arguments[1:], layer.scale, window)
            for layer, output, window in zip(layers, outputs, windows, strict=True)
        )
    )
    call("quire_paged_attention_layers", args, len(layers))
    for output, alone in zip(outputs, expected, strict=True):
        assert torch.equal(output, alone)
