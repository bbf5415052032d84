"""The native kernels through the facade, against the reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire import kernels
from quire.kernels import reference
from quire.kernels.cache import QuantizedCache, dequantize

if TYPE_CHECKING:
    from .conftest import Case

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}

# Query, cache.
TYPES = [
    (query, cache) for query in (torch.float32, torch.bfloat16) for cache in (torch.float32, torch.bfloat16, torch.int8)
]


@pytest.fixture(params=TYPES, ids=lambda pair: "-".join(str(dtype).removeprefix("torch.") for dtype in pair))
def types(request: pytest.FixtureRequest) -> dict[str, torch.dtype]:
    """Every pair of a query's and a cache's type."""
    return {"dtype": request.param[0], "cache_dtype": request.param[1]}


def assert_matches_reference(case: Case, sliding_window: int | None = None, tolerance: float | None = None) -> None:
    query, key_cache, value_cache, metadata = case.arguments
    output = kernels.paged_attention(*case.arguments, scale=case.scale, sliding_window=sliding_window)
    assert output.dtype == query.dtype
    assert output.is_contiguous()
    # The cache's own numbers in float32: what a kernel adds to the error is its own, whatever the cache's type.
    expected = reference.paged_attention(
        query.float(), dequantize(key_cache), dequantize(value_cache), metadata, case.scale, sliding_window
    )
    tolerance = tolerance or TOLERANCE[query.dtype]
    torch.testing.assert_close(output.float(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("head_dim", [1, 20, 32, 48, 64, 80, 96, 128])
def test_head_dims(isa: str, make_case: Callable[..., Case], head_dim: int, types: dict[str, torch.dtype]):
    assert_matches_reference(make_case([1, 1, 5, 40], [1, 90, 70, 40], head_dim=head_dim, **types))


@pytest.mark.parametrize("block_size", [1, 8, 16, 32, 100])
def test_block_sizes(isa: str, make_case: Callable[..., Case], block_size: int, types: dict[str, torch.dtype]):
    assert_matches_reference(make_case([1, 30], [150, 130], block_size=block_size, **types))


@pytest.mark.parametrize(("num_kv_heads", "group"), [(1, 1), (1, 3), (2, 8)])
@pytest.mark.parametrize("sliding_window", [None, 70])
def test_types_with_groups_and_windows(
    isa: str,
    make_case: Callable[..., Case],
    num_kv_heads: int,
    group: int,
    sliding_window: int | None,
    types: dict[str, torch.dtype],
):
    case = make_case([1, 50], [300, 290], num_kv_heads=num_kv_heads, group=group, head_dim=40, **types)
    assert_matches_reference(case, sliding_window)


def test_int8_is_as_near_as_its_steps_allow(make_case: Callable[..., Case]):
    exact = make_case([1, 60], [500, 300], dtype=torch.float32)
    rounded = make_case([1, 60], [500, 300], dtype=torch.float32, cache_dtype=torch.int8)
    expected = kernels.paged_attention(*exact.arguments, scale=exact.scale)
    output = kernels.paged_attention(*rounded.arguments, scale=rounded.scale)
    # An element is off by half a step, highest / 254, at most. Values: as much, since weights add up to 1. Scores: by
    # |q| * sqrt(head_dim) * half a step * scale at most, which changes a weight by a factor of exp(2 * that) at most.
    # Errors of either sign cancel, so the bound is never near: hence the second, tighter one.
    half_step = float(exact.key_cache.nan_to_num().abs().max()) / 254
    score = float(exact.query.norm(dim=-1).max()) * 64**0.5 * half_step * exact.scale
    highest = float(exact.value_cache.nan_to_num().abs().max())
    error = float((output - expected).abs().max())
    assert 0 < error < half_step + highest * (torch.tensor(2 * score).exp().item() - 1)
    assert error < 0.02


@pytest.mark.parametrize(("num_kv_heads", "group"), [(1, 1), (4, 1), (2, 2), (1, 7), (2, 8), (1, 71)])
def test_head_groups(isa: str, make_case: Callable[..., Case], num_kv_heads: int, group: int):
    case = make_case([1, 9], [67, 66], num_kv_heads=num_kv_heads, group=group, head_dim=16)
    assert_matches_reference(case)


@pytest.mark.parametrize("sliding_window", [1, 2, 63, 64, 65, 200, 1000])
def test_sliding_window(isa: str, make_case: Callable[..., Case], sliding_window: int):
    case = make_case([1, 1, 100, 300], [330, 64, 310, 300], num_kv_heads=1, head_dim=16)
    assert_matches_reference(case, sliding_window)


def test_context_of_many_partitions(isa: str, make_case: Callable[..., Case]):
    assert_matches_reference(make_case([1, 33], [1300, 1111], num_kv_heads=1, head_dim=16))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape(make_case: Callable[..., Case], data: st.DataObject):
    sequences = data.draw(
        st.lists(st.tuples(st.integers(0, 70), st.integers(0, 200)), min_size=1, max_size=5).filter(
            lambda pairs: any(query for query, _ in pairs)
        )
    )
    kernels.set_isa(data.draw(st.sampled_from(kernels.available_isas())))
    kernels.set_num_threads(data.draw(st.integers(1, 3)))
    case = make_case(
        [query for query, _ in sequences],
        [query + before for query, before in sequences],
        num_kv_heads=data.draw(st.integers(1, 3)),
        group=data.draw(st.integers(1, 9)),
        head_dim=data.draw(st.integers(1, 100)),
        block_size=data.draw(st.integers(1, 40)),
        dtype=data.draw(st.sampled_from([torch.float32, torch.bfloat16])),
        cache_dtype=data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int8])),
        seed=data.draw(st.integers(0, 10)),
    )
    assert_matches_reference(case, data.draw(st.none() | st.integers(1, 120)))


def test_large_scores(isa: str, make_case: Callable[..., Case]):
    case = make_case([1, 20], [300, 200])
    # Scores of several hundred: their own rounding comes out of exp a hundred times larger.
    assert_matches_reference(dataclasses.replace(case, scale=60.0), tolerance=2e-3)


def test_nan_of_a_visible_key_shows(isa: str, make_case: Callable[..., Case], types: dict[str, torch.dtype]):
    case = make_case([4], [100], num_kv_heads=1, group=1, **types)
    case.spoil(0, range(98, 99))
    output = kernels.paged_attention(*case.arguments, scale=case.scale)
    assert output[:2].isfinite().all()  # positions 96 and 97 do not see it
    assert output[2:].isnan().all()


def test_query_may_be_a_view(make_case: Callable[..., Case]):
    case = make_case([1, 6], [40, 50])
    expected = kernels.paged_attention(*case.arguments, scale=case.scale)
    packed = torch.zeros(7, 9, 70)
    packed[:, 2:8, 3:67] = case.query
    view = dataclasses.replace(case, query=packed[:, 2:8, 3:67])
    assert torch.equal(kernels.paged_attention(*view.arguments, scale=case.scale), expected)


def test_no_tokens(make_case: Callable[..., Case]):
    case = make_case([0], [20])
    assert kernels.paged_attention(*case.arguments, scale=1.0).shape == (0, 6, 64)


def test_blocks_before_the_window_are_not_looked_at(make_case: Callable[..., Case]):
    case = make_case([1], [200])
    expected = kernels.paged_attention(*case.arguments, scale=case.scale, sliding_window=50)
    case.metadata.block_tables[0, : 150 // 16] = -1
    assert torch.equal(kernels.paged_attention(*case.arguments, scale=case.scale, sliding_window=50), expected)


# What a caller can get wrong.


@pytest.mark.parametrize("implementation", ["native", "torch"])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("query_start", {"query_start": torch.tensor([1, 1, 4], dtype=torch.int32)}),
        ("query_start", {"query_start": torch.tensor([0, 1, 3], dtype=torch.int32)}),
        ("query_start", {"query_start": torch.tensor([0, 5, 4], dtype=torch.int32)}),
        ("context_lens", {"context_lens": torch.tensor([20, 2], dtype=torch.int32)}),
        ("context_lens", {"context_lens": torch.tensor([20, 33], dtype=torch.int32)}),
        ("block_tables", {"block_tables": torch.tensor([[0, 9], [1, 1]], dtype=torch.int32)}),
        ("block_tables", {"block_tables": torch.tensor([[0, 1], [-1, 0]], dtype=torch.int32)}),
    ],
)
def test_metadata_outside_the_cache(
    make_case: Callable[..., Case], implementation: Any, name: str, change: dict[str, torch.Tensor]
):
    case = make_case([1, 3], [20, 30])
    kernels.set_implementation(implementation)
    metadata = dataclasses.replace(case.metadata, **change)
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        kernels.paged_attention(*case.arguments[:3], metadata, scale=1.0)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("query", lambda case: {"query": case.query[:-1]}),
        ("query", lambda case: {"query": case.query[:, :5]}),
        ("query", lambda case: {"query": case.query[:, :, :32]}),
        ("query", lambda case: {"query": case.query.double()}),
        ("query", lambda case: {"query": case.query.transpose(1, 2).contiguous().transpose(1, 2)}),
        ("key_cache", lambda case: {"key_cache": case.key_cache.double()}),
        ("key_cache", lambda case: {"key_cache": case.key_cache[0]}),
        ("key_cache", lambda case: {"key_cache": case.key_cache[:, :, :, ::2]}),
        ("key_cache", lambda case: {"key_cache": case.key_cache[:, :, ::2]}),
        ("value_cache", lambda case: {"value_cache": case.value_cache[:, :1]}),
        ("value_cache", lambda case: {"value_cache": case.value_cache.bfloat16()}),
        ("key_cache", lambda case: {"key_cache": case.key_cache.char()}),
        ("key_cache", lambda case: {"key_cache": QuantizedCache(case.key_cache, case.key_cache[..., 0])}),
        ("key_cache", lambda case: {"key_cache": QuantizedCache(case.key_cache.char(), case.key_cache[:, 0, :, 0])}),
        ("key_cache", lambda case: {"key_cache": QuantizedCache(case.key_cache.char(), case.key_cache[..., 0])}),
        ("value_cache", lambda case: {"value_cache": QuantizedCache(case.key_cache.char(), torch.zeros(9, 2, 16))}),
    ],
)
def test_wrong_tensor_is_named(
    make_case: Callable[..., Case], name: str, change: Callable[[Case], dict[str, torch.Tensor]]
):
    case = make_case([1, 3], [20, 30])
    with pytest.raises(ValueError, match=f"^{name} "):
        kernels.paged_attention(*dataclasses.replace(case, **change(case)).arguments, scale=1.0)


def test_float16_is_torchs(make_case: Callable[..., Case]):
    case = make_case([1, 3], [20, 30], dtype=torch.float16)
    with pytest.raises(ValueError, match=r"^key_cache "):
        kernels.paged_attention(*case.arguments, scale=1.0)
    kernels.set_implementation("torch")
    assert kernels.paged_attention(*case.arguments, scale=1.0).dtype == torch.float16


def test_sliding_window_must_see_itself(make_case: Callable[..., Case]):
    with pytest.raises(ValueError, match=r"^sliding_window "):
        kernels.paged_attention(*make_case([1], [20]).arguments, scale=1.0, sliding_window=0)
