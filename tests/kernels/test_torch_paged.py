"""The torch implementation for any device, against the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.kernels import reference, torch_paged
from quire.kernels.cache import dequantize

if TYPE_CHECKING:
    from .conftest import Case

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def assert_matches_reference(case: Case, sliding_window: int | None) -> None:
    query, key_cache, value_cache, metadata = case.arguments
    output = torch_paged.paged_attention(*case.arguments, case.scale, sliding_window)
    expected = reference.paged_attention(
        query.float(), dequantize(key_cache), dequantize(value_cache), metadata, case.scale, sliding_window
    )
    tolerance = TOLERANCE[query.dtype]
    torch.testing.assert_close(output.float(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("cache_dtype", [None, torch.float32, torch.int8])
@pytest.mark.parametrize("sliding_window", [None, 1, 60])
def test_mixed_batch(
    make_case: Callable[..., Case], dtype: torch.dtype, cache_dtype: torch.dtype | None, sliding_window: int | None
):
    # More than a chunk of context and more than a tile of queries.
    lengths = [1, 1, 0, 5, 5, 300], [1, 290, 4, 5, 300, 310]
    case = make_case(*lengths, num_kv_heads=1, head_dim=16, dtype=dtype, cache_dtype=cache_dtype)
    assert_matches_reference(case, sliding_window)


@settings(max_examples=40, deadline=None)
@given(
    sequences=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 120)), min_size=1, max_size=5),
    group=st.integers(1, 4),
    head_dim=st.integers(1, 70),
    block_size=st.integers(1, 40),
    sliding_window=st.none() | st.integers(1, 80),
)
def test_any_shape(
    make_case: Callable[..., Case],
    sequences: list[tuple[int, int]],
    group: int,
    head_dim: int,
    block_size: int,
    sliding_window: int | None,
):
    case = make_case(
        [query for query, _ in sequences],
        [query + before for query, before in sequences],
        group=group,
        head_dim=head_dim,
        block_size=block_size,
    )
    assert_matches_reference(case, sliding_window)
