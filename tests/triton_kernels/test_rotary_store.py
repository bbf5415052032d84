"""Norms, rotation and the cache's write in one launch, against the operators of torch one after another."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from quire import kernels
from quire.kernels import reference, torch_paged
from quire.kernels.cache import SCALED_DTYPES, Cache, QuantizedCache, elements

# In the interpreter numpy warns of what is no error on a GPU: of infinities and their quotients.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

NUM_BLOCKS, BLOCK_SIZE = 3, 16

# What the interpreter converts to as a GPU does; see test_cache_store.py.
CACHE_DTYPES = [torch.float32, torch.int8]
if os.environ.get("TRITON_INTERPRET") != "1":
    CACHE_DTYPES += [torch.float16, torch.bfloat16, torch.float8_e4m3fn]

# Heads, KV heads, head_dim, rotary_dim.
HEADS = [(1, 1, 4, 4), (6, 2, 20, 20), (9, 3, 80, 32), (12, 9, 64, 64)]


def make_caches(kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> list[Cache]:
    shape = (NUM_BLOCKS, 3, kv_heads, BLOCK_SIZE)
    data = [torch.ones(*shape, head_dim, device=device).to(dtype)[:, 1] for _ in range(2)]
    if dtype not in SCALED_DTYPES:
        return list(data)
    return [QuantizedCache(each, torch.ones(shape, device=device)[:, 1]) for each in data]


def make_arguments(
    num_tokens: int,
    heads: tuple[int, int, int, int],
    norms: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Any]:
    num_heads, kv_heads, head_dim, rotary_dim = heads
    torch.manual_seed(0)
    angles = torch.rand(num_tokens, rotary_dim // 2, device=device) * 6
    # Rows of a wider buffer.
    wide = torch.randn(num_tokens, (num_heads + 2 * kv_heads) * head_dim + 5).to(device, dtype)
    weights = (torch.rand(2, head_dim) + 0.5).to(device, dtype)
    return {
        "qkv": wide[:, 3:-2],
        "cos": angles.cos(),
        "sin": angles.sin(),
        "slot_mapping": torch.randperm(NUM_BLOCKS * BLOCK_SIZE)[:num_tokens].to(device),
        "q_norm": weights[0] if norms else None,
        "k_norm": weights[1] if norms else None,
        "eps": 1e-6,
    }


def in_torch(arguments: dict[str, Any], caches: list[Cache]) -> torch.Tensor:
    """What the queries, keys and values become."""
    kernels.set_implementation("torch")
    qkv = arguments["qkv"].clone()
    torch_paged.rotate_and_store(**{**arguments, "qkv": qkv}, key_cache=caches[0], value_cache=caches[1])
    kernels.set_implementation("triton")
    return qkv


def check_stored(caches: list[Cache], arguments: dict[str, Any], qkv: torch.Tensor) -> None:
    """The caches hold what became of the keys and values, and nothing else."""
    _, kv_heads, _, head_dim = elements(caches[0]).shape
    key, value = qkv.unflatten(1, (-1, head_dim))[:, -2 * kv_heads :].chunk(2, dim=1)
    expected = make_caches(kv_heads, head_dim, elements(caches[0]).dtype, qkv.device)
    reference.store_kv(key, value, *expected, arguments["slot_mapping"])
    for cache, other in zip(caches, expected, strict=True):
        assert torch.equal(elements(cache).float(), elements(other).float())
        if isinstance(cache, QuantizedCache) and isinstance(other, QuantizedCache):
            assert torch.equal(cache.scales, other.scales)


@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)
@pytest.mark.parametrize("heads", HEADS)
def test_every_rounding_is_that_of_torch(heads, cache_dtype, dtype, device):
    arguments = make_arguments(3, heads, False, dtype, device)
    caches, expected_caches = (make_caches(heads[1], heads[2], cache_dtype, device) for _ in range(2))
    expected = in_torch(arguments, expected_caches)
    qkv = arguments["qkv"].clone()
    kernels.rotate_and_store(**{**arguments, "qkv": qkv}, key_cache=caches[0], value_cache=caches[1])
    assert torch.equal(qkv, expected)
    check_stored(caches, arguments, qkv)


@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)
@pytest.mark.parametrize("heads", HEADS[1:3])
def test_with_norms(heads, cache_dtype, dtype, device):
    arguments = make_arguments(3, heads, True, dtype, device)
    caches, expected_caches = (make_caches(heads[1], heads[2], cache_dtype, device) for _ in range(2))
    expected = in_torch(arguments, expected_caches)
    qkv = arguments["qkv"].clone()
    kernels.rotate_and_store(**{**arguments, "qkv": qkv}, key_cache=caches[0], value_cache=caches[1])
    # The norm's sum has another order.
    error = {torch.float32: 2e-6, torch.float16: 2**-8, torch.bfloat16: 2**-5}[dtype]
    torch.testing.assert_close(qkv, expected, rtol=error, atol=error)
    check_stored(caches, arguments, qkv)


@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)
def test_padding_is_not_stored_and_changes_no_other_token(cache_dtype, dtype, device):
    heads = HEADS[1]
    arguments = make_arguments(4, heads, True, dtype, device)
    real = slice(1, 3)
    alone = {name: arguments[name][real] for name in ("cos", "sin", "slot_mapping")}
    alone = {**arguments, **alone, "qkv": arguments["qkv"][real].clone()}
    caches, expected = (make_caches(heads[1], heads[2], cache_dtype, device) for _ in range(2))
    kernels.rotate_and_store(**alone, key_cache=expected[0], value_cache=expected[1])

    slots = arguments["slot_mapping"].clone()
    slots[0] = slots[3] = -1
    padded = {**arguments, "qkv": arguments["qkv"].clone(), "slot_mapping": slots}
    kernels.rotate_and_store(**padded, key_cache=caches[0], value_cache=caches[1])
    assert torch.equal(padded["qkv"][real], alone["qkv"])
    check_stored(caches, padded, padded["qkv"])
    for cache, other in zip(caches, expected, strict=True):
        assert torch.equal(elements(cache).float(), elements(other).float())
