"""Attention in Triton against the reference."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.attention import Case, make_case

from quire import kernels
from quire.kernels import attention_work, reference
from quire.kernels.cache import SCALED_DTYPES, Cache, QuantizedCache, dequantize

TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def _short_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts of several sections, without the interpreter's minutes."""
    monkeypatch.setattr(attention_work, "SECTION", 128)


def on(case: Case, device: torch.device) -> Case:
    def moved(cache: Cache) -> Cache:
        # The whole pool moves: views keep their strides.
        return QuantizedCache(*map(view_on, cache)) if isinstance(cache, QuantizedCache) else view_on(cache)

    def view_on(view: torch.Tensor) -> torch.Tensor:
        return view._base.to(device).as_strided(view.shape, view.stride(), view.storage_offset())

    if device.type == "cpu":
        return case
    metadata = kernels.AttentionMetadata(
        **{
            name: getattr(case.metadata, name).to(device)
            for name in ("query_start", "context_lens", "block_tables", "slot_mapping")
        }
    )
    return Case(case.query.to(device), moved(case.key_cache), moved(case.value_cache), metadata, case.scale)


def attend(case: Case, device: torch.device, sliding_window: int | None = None) -> torch.Tensor:
    return kernels.paged_attention(*on(case, device).arguments, scale=case.scale, sliding_window=sliding_window).cpu()


def assert_matches_reference(case: Case, device: torch.device, sliding_window: int | None = None) -> None:
    query, key_cache, value_cache, metadata = case.arguments
    output = attend(case, device, sliding_window)
    assert output.dtype == query.dtype
    expected = reference.paged_attention(
        query.float(), dequantize(key_cache), dequantize(value_cache), metadata, case.scale, sliding_window
    )
    tolerance = TOLERANCE[query.dtype]
    torch.testing.assert_close(output.float(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("cache_dtype", [None, *SCALED_DTYPES])
@pytest.mark.parametrize("sliding_window", [None, 70])
def test_types(device, dtype, cache_dtype, sliding_window):
    """Decode, a chunk of prefill over two tiles, a whole prompt; several sections."""
    case = make_case(
        [1, 30, 5], [300, 160, 5], num_kv_heads=1, group=3, head_dim=32, dtype=dtype, cache_dtype=cache_dtype
    )
    assert_matches_reference(case, device, sliding_window)


@pytest.mark.parametrize("head_dim", [20, 80, 128, 256])
def test_head_dims(device, head_dim):
    assert_matches_reference(make_case([1, 3], [140, 9], num_kv_heads=1, group=2, head_dim=head_dim), device)


@pytest.mark.parametrize("block_size", [1, 8, 24, 100])
def test_block_sizes(device, block_size):
    assert_matches_reference(make_case([1, 3], [140, 9], num_kv_heads=1, block_size=block_size, head_dim=16), device)


@pytest.mark.parametrize(("num_kv_heads", "group"), [(4, 1), (1, 7), (2, 8), (1, 64), (1, 71)])
def test_head_groups(device, num_kv_heads, group):
    case = make_case([1, 5], [67, 66], num_kv_heads=num_kv_heads, group=group, head_dim=16)
    assert_matches_reference(case, device)


@pytest.mark.parametrize("sliding_window", [1, 64, 127, 1000])
def test_sliding_windows(device, sliding_window):
    case = make_case([1, 1, 70], [400, 64, 200], num_kv_heads=1, group=1, head_dim=16)
    assert_matches_reference(case, device, sliding_window)


def test_a_cache_of_another_type(device):
    """The wider of the two is what products are computed in."""
    case = make_case([1, 3], [140, 9], dtype=torch.float16, cache_dtype=torch.float32, num_kv_heads=1, head_dim=16)
    assert_matches_reference(case, device)


def test_large_scores(device):
    case = make_case([1, 4], [300, 20], num_kv_heads=1, group=2, head_dim=16)
    case = dataclasses.replace(case, scale=4.0)
    assert_matches_reference(case, device)


def test_query_may_be_a_view(device):
    case = make_case([1, 6], [40, 50], num_kv_heads=2, group=3, head_dim=16)
    expected = attend(case, device)
    packed = torch.zeros(7, 9, 20)
    packed[:, 2:8, 3:19] = case.query
    assert torch.equal(attend(dataclasses.replace(case, query=packed[:, 2:8, 3:19]), device), expected)


def test_nan_of_a_visible_key_shows(device):
    case = make_case([1, 1], [100, 30], num_kv_heads=1, group=1, head_dim=16, cache_dtype=torch.int8)
    case.spoil(0, range(98, 99))
    output = attend(case, device)
    assert output[0].isnan().all()
    assert output[1].isfinite().all()


def test_blocks_before_the_window_are_not_looked_at(device):
    case = make_case([1], [200], num_kv_heads=1, head_dim=16)
    expected = attend(case, device, 50)
    # What lies there would be outside the pool.
    case.metadata.block_tables[0, : 150 // 16] = 1 << 20
    assert torch.equal(attend(case, device, 50), expected)


def test_no_tokens(device):
    assert attend(make_case([0], [20]), device).shape == (0, 6, 64)
