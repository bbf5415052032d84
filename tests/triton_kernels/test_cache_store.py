"""The cache's write in Triton against the reference, bit for bit."""

from __future__ import annotations

import os

import pytest
import torch

from quire import kernels
from quire.kernels import reference
from quire.kernels.cache import SCALED_DTYPES, Cache, QuantizedCache, dequantize, elements

# In the interpreter numpy warns of what is no error on a GPU: of infinities and their quotients.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

Caches = tuple[Cache, Cache]

# Triton 3.9's interpreter cuts off what bfloat16 cannot hold, and loses the carry of what FP8 cannot. There, only
# numbers that both hold are converted.
ROUNDS = os.environ.get("TRITON_INTERPRET") != "1"

CACHE_DTYPES = [torch.float32, torch.float16, torch.bfloat16, *SCALED_DTYPES]

NUM_BLOCKS, BLOCK_SIZE = 4, 16


def make_caches(kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> Caches:
    """The middle layer of three, of ones."""
    shape = (NUM_BLOCKS, 3, 2, kv_heads, BLOCK_SIZE)
    pool = torch.ones(*shape, head_dim, device=device).to(dtype)
    if dtype not in SCALED_DTYPES:
        return pool[:, 1, 0], pool[:, 1, 1]
    scales = torch.ones(shape, device=device)
    return QuantizedCache(pool[:, 1, 0], scales[:, 1, 0]), QuantizedCache(pool[:, 1, 1], scales[:, 1, 1])


def numbers(shape: tuple[int, ...], cache_dtype: torch.dtype) -> torch.Tensor:
    """Random float32 numbers; in the interpreter those that the cache's type holds, with a scale of 1."""
    x = 5 * torch.randn(shape)
    if ROUNDS or cache_dtype not in (torch.bfloat16, torch.float8_e4m3fn):
        return x
    x = x.to(torch.float8_e4m3fn).float()
    x[..., 0] = 448.0
    return x


def assert_same(caches: Caches, expected: Caches) -> None:
    for cache, other in zip(caches, expected, strict=True):
        if isinstance(cache, QuantizedCache) and isinstance(other, QuantizedCache):
            torch.testing.assert_close(cache.scales, other.scales, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(elements(cache).float(), elements(other).float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)
@pytest.mark.parametrize(("num_tokens", "kv_heads", "head_dim"), [(1, 1, 4), (5, 3, 20), (2, 9, 128)])
def test_equals_reference(cache_dtype, num_tokens, kv_heads, head_dim, dtype, device):
    torch.manual_seed(0)
    caches, expected = (make_caches(kv_heads, head_dim, cache_dtype, device) for _ in range(2))
    # As a model has them: views of one packed projection.
    packed = numbers((num_tokens, 4 * kv_heads, head_dim), cache_dtype).to(device, dtype)
    key, value = packed[:, kv_heads : 2 * kv_heads], packed[:, 3 * kv_heads :]
    slots = torch.randperm(NUM_BLOCKS * BLOCK_SIZE)[:num_tokens].to(device)
    reference.store_kv(key, value, *expected, slots)
    kernels.store_kv(key, value, *caches, slots)
    assert_same(caches, expected)


@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)
def test_nothing_is_stored_for_padding(cache_dtype, device):
    caches, expected = (make_caches(2, 8, cache_dtype, device) for _ in range(2))
    new = numbers((4, 2, 8), cache_dtype).to(device)
    slots = torch.tensor([-1, 5, -1, -1], device=device)
    kernels.store_kv(new, -new, *caches, slots)
    reference.store_kv(new[1:2], -new[1:2], *expected, slots[1:2])
    assert_same(caches, expected)


UNUSUAL = {
    "zeros": [0.0, -0.0, 0.0, 0.0],
    "ties in int8": [127.0, 0.5, 1.5, -2.5],
    "ties in FP8": [448.0, 17.0, 19.0, -0.0009765625],
    "small in FP8": [448.0, 0.001953125, 0.0029296875, 0.0068359375],
    "nan": [1.0, float("nan"), 2.0, 3.0],
    "infinite": [1.0, float("-inf"), 2.0, 3.0],
    "subnormal scale": [2e-43, 1e-43, -2e-43, 0.0],
    "no scale at all": [1e-45, 0.0, 0.0, 0.0],
    "huge": [3.4e38, -3.4e38, 1.0, 1e38],
}


@pytest.mark.parametrize("cache_dtype", SCALED_DTYPES)
@pytest.mark.parametrize("unusual", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_unusual_numbers_in_8_bits(cache_dtype, unusual, device):
    caches, expected = (make_caches(1, 12, cache_dtype, device) for _ in range(2))
    key = torch.tensor(3 * unusual, device=device).view(1, 1, 12)
    if not ROUNDS and cache_dtype == torch.float8_e4m3fn:
        if unusual is UNUSUAL["ties in int8"]:
            pytest.skip("its scale in FP8 is no power of two: the interpreter would have to round")
        key = key.to(cache_dtype).float()
    slots = torch.tensor([5], device=device)
    kernels.store_kv(key, -key, *caches, slots)
    reference.store_kv(key, -key, *expected, slots)
    assert_same(caches, expected)


@pytest.mark.parametrize("cache_dtype", SCALED_DTYPES)
def test_what_8_bits_cannot_tell_shows(cache_dtype, device):
    caches = make_caches(1, 4, cache_dtype, device)
    new = torch.tensor([[[1.0, float("inf"), 0.0, 0.0]]], device=device)
    kernels.store_kv(new, new, *caches, torch.tensor([2], device=device))
    assert dequantize(caches[0])[0, 0, 2].isnan().all()
