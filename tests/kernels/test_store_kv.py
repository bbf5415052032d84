"""Writes of new keys and values, native and torch, against the reference."""

from typing import Any

import pytest
import torch

from quire import kernels
from quire.kernels import reference
from quire.kernels.cache import SCALED_DTYPES, Cache, QuantizedCache, dequantize, elements

Caches = tuple[Cache, Cache]


def make_caches(num_blocks: int, kv_heads: int, block_size: int, head_dim: int, dtype: torch.dtype) -> Caches:
    """The middle layer of three."""
    pool = torch.zeros(num_blocks, 3, 2, kv_heads, block_size, head_dim, dtype=dtype)
    if dtype not in SCALED_DTYPES:
        return pool[:, 1, 0], pool[:, 1, 1]
    scales = torch.zeros(num_blocks, 3, 2, kv_heads, block_size)
    return QuantizedCache(pool[:, 1, 0], scales[:, 1, 0]), QuantizedCache(pool[:, 1, 1], scales[:, 1, 1])


def assert_same(caches: Caches, expected: Caches) -> None:
    for cache, other in zip(caches, expected, strict=True):
        if isinstance(cache, QuantizedCache) and isinstance(other, QuantizedCache):
            torch.testing.assert_close(cache.scales, other.scales, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(elements(cache), elements(other), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 7, 3000])  # the last is shared among threads
def test_equals_reference(isa: str, cache_dtype: torch.dtype, dtype: torch.dtype, num_tokens: int):
    torch.manual_seed(0)
    caches, expected = (make_caches(300, 3, 16, 20, cache_dtype) for _ in range(2))
    # As a model has them: views of one packed projection.
    packed = torch.randn(num_tokens, 10, 20).to(dtype)
    key, value = packed[:, 4:7], packed[:, 7:]
    slots = torch.randperm(300 * 16)[:num_tokens]
    reference.store_kv(key, value, *expected, slots)
    for implementation in ("native", "torch"):
        kernels.set_implementation(implementation)
        for cache in caches:
            elements(cache).zero_()
        kernels.store_kv(key, value, *caches, slots)
        assert_same(caches, expected)


NUMBERS = {
    "zeros": [0.0, -0.0, 0.0, 0.0],
    "ties": [127.0, 0.5, 1.5, -2.5],
    "nan": [1.0, float("nan"), 2.0, 3.0],
    "infinite": [1.0, float("-inf"), 2.0, 3.0],
    "subnormal scale": [2e-43, 1e-43, -2e-43, 0.0],
    "no scale at all": [1e-45, 0.0, 0.0, 0.0],
    "huge": [3.4e38, -3.4e38, 1.0, 1e38],
}


@pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS.keys())
@pytest.mark.parametrize("head_dim", [4, 36])
def test_unusual_numbers_in_int8(isa: str, numbers: list[float], head_dim: int):
    caches, expected = (make_caches(2, 1, 4, head_dim, torch.int8) for _ in range(2))
    key = torch.tensor(numbers * (head_dim // 4)).view(1, 1, head_dim)
    slots = torch.tensor([5])
    kernels.store_kv(key, -key, *caches, slots)
    reference.store_kv(key, -key, *expected, slots)
    assert_same(caches, expected)


def test_what_int8_cannot_tell_shows():
    caches = make_caches(1, 1, 4, 4, torch.int8)
    new = torch.tensor([[[1.0, float("inf"), 0.0, 0.0]]])
    kernels.store_kv(new, new, *caches, torch.tensor([2]))
    assert dequantize(caches[0])[0, 0, 2].isnan().all()


def test_int8_is_within_half_a_step():
    torch.manual_seed(0)
    caches = make_caches(4, 2, 16, 64, torch.int8)
    key, value = torch.randn(2, 64, 2, 64) * 10 ** torch.linspace(-3, 3, 64)[:, None, None]
    kernels.store_kv(key, value, *caches, torch.arange(64))
    for new, cache in ((key, caches[0]), (value, caches[1])):
        held = dequantize(cache).transpose(1, 2).reshape(64, 2, 64)
        step = new.abs().amax(-1, keepdim=True) / 127
        assert ((held - new).abs() <= 0.5001 * step).all()


@pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS.keys())
def test_fp8_in_torch(numbers: list[float]):
    kernels.set_implementation("torch")
    caches, expected = (make_caches(2, 1, 4, 4, torch.float8_e4m3fn) for _ in range(2))
    key = torch.tensor(numbers).view(1, 1, 4)
    kernels.store_kv(key, -key, *caches, torch.tensor([5]))
    reference.store_kv(key, -key, *expected, torch.tensor([5]))
    for cache, other in zip(caches, expected, strict=True):
        torch.testing.assert_close(dequantize(cache), dequantize(other), rtol=0, atol=0, equal_nan=True)
        assert dequantize(cache)[1, 0, 1].isnan().all() == (not key.isfinite().all())


def test_fp8_has_three_bits_after_the_leading_one():
    torch.manual_seed(0)
    kernels.set_implementation("torch")
    caches = make_caches(4, 2, 16, 64, torch.float8_e4m3fn)
    key, value = torch.randn(2, 64, 2, 64) * 10 ** torch.linspace(-3, 3, 64)[:, None, None]
    kernels.store_kv(key, value, *caches, torch.arange(64))
    for new, cache in ((key, caches[0]), (value, caches[1])):
        held = dequantize(cache).transpose(1, 2).reshape(64, 2, 64)
        # Half a unit of the last bit; below 2 ** -6 of the type's own range, units do not shrink any more.
        smallest = new.abs().amax(-1, keepdim=True) / 448 * 2**-10
        assert ((held - new).abs() <= torch.maximum(new.abs() * 2**-4, smallest) * 1.0001).all()


def test_the_native_kernels_have_no_fp8():
    caches = make_caches(2, 1, 4, 4, torch.float8_e4m3fn)
    new = torch.ones(1, 1, 4)
    with pytest.raises(ValueError, match=r"^key_cache is torch\.float8_e4m3fn"):
        kernels.store_kv(new, new, *caches, torch.tensor([5]))


def test_a_padding_token_is_stored_nowhere():
    kernels.set_implementation("torch")
    key_cache, value_cache = torch.zeros(2, 4, 1, 16, 8)
    new = torch.ones(2, 1, 8)
    kernels.store_kv(new, new, key_cache, value_cache, torch.tensor([17, -1]))
    assert key_cache.sum() == value_cache.sum() == 8


@pytest.mark.parametrize(("implementation", "slot"), [("native", -1), ("native", 64), ("torch", -2), ("torch", 64)])
def test_slot_outside_the_cache(implementation: Any, slot: int):
    kernels.set_implementation(implementation)
    key_cache, value_cache = torch.zeros(2, 4, 1, 16, 8)
    new = torch.ones(2, 1, 8)
    with pytest.raises(ValueError, match=r"^slot_mapping"):
        kernels.store_kv(new, new, key_cache, value_cache, torch.tensor([0, slot]))
    assert not key_cache.any()  # nothing was written, not even the good slot
    assert not value_cache.any()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("key", {"key": torch.ones(3, 1, 8)}),
        ("key", {"key": torch.ones(2, 2, 8)}),
        ("key", {"key": torch.ones(2, 1, 8, dtype=torch.float64)}),
        ("value", {"value": torch.ones(2, 1, 8, dtype=torch.bfloat16)}),
        ("value", {"value": torch.ones(2, 1, 16)[:, :, ::2]}),
        ("slot_mapping", {"slot_mapping": torch.tensor([0, 1], dtype=torch.int32)}),
        ("slot_mapping", {"slot_mapping": torch.tensor([[0, 1]])}),
    ],
)
def test_wrong_tensor_is_named(name: str, change: dict[str, torch.Tensor]):
    arguments = {
        "key": torch.ones(2, 1, 8),
        "value": torch.ones(2, 1, 8),
        "key_cache": torch.zeros(4, 1, 16, 8),
        "value_cache": torch.zeros(4, 1, 16, 8),
        "slot_mapping": torch.tensor([0, 1]),
    }
    with pytest.raises(ValueError, match=f"^{name} "):
        kernels.store_kv(**(arguments | change))


def test_no_tokens():
    cache = torch.zeros(4, 1, 16, 8)
    kernels.store_kv(torch.ones(0, 1, 8), torch.ones(0, 1, 8), cache, cache, torch.zeros(0, dtype=torch.int64))
    assert not cache.any()
