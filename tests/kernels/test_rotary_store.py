"""Norms, rotation and the cache's write in one pass, against the operators one after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from quire import kernels
from quire.kernels import reference
from quire.kernels.cache import QuantizedCache, dequantize, elements

NUM_BLOCKS, BLOCK_SIZE, KV_HEADS, GROUP = 40, 16, 2, 3

# Tokens, head_dim, rotary_dim. 500 tokens are shared among threads.
HEADS = [(64, 64), (128, 128), (80, 80), (20, 20), (80, 32)]
SIZES = [*((count, *heads) for heads in HEADS for count in (1, 5)), (500, 64, 64), (500, 80, 32)]


def make_caches(head_dim: int, dtype: torch.dtype) -> list[kernels.Cache]:
    shape = (NUM_BLOCKS, KV_HEADS, BLOCK_SIZE, head_dim)
    if dtype == torch.int8:
        return [QuantizedCache(torch.zeros(shape, dtype=dtype), torch.zeros(shape[:3])) for _ in range(2)]
    return [torch.zeros(shape, dtype=dtype) for _ in range(2)]


def make_arguments(num_tokens: int, head_dim: int, rotary_dim: int, norms: bool) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    angles = torch.rand(num_tokens, rotary_dim // 2, generator=generator) * 6
    # Rows of a wider buffer, as a projection into a workspace leaves them.
    wide = torch.randn(num_tokens, (GROUP + 2) * KV_HEADS * head_dim + 5, generator=generator)
    weights = (torch.rand(2, head_dim, generator=generator) + 0.5) if norms else (None, None)
    return {
        "qkv": wide[:, 3:-2],
        "cos": angles.cos(),
        "sin": angles.sin(),
        "slot_mapping": torch.randperm(NUM_BLOCKS * BLOCK_SIZE, generator=generator)[:num_tokens],
        "q_norm": weights[0],
        "k_norm": weights[1],
        "eps": 1e-6,
    }


def one_after_the_other(
    caches: list[kernels.Cache],
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    slot_mapping: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
) -> Tensor:
    head_dim = elements(caches[0]).shape[3]
    heads = qkv.unflatten(1, (-1, head_dim))
    query, key, value = heads.split([GROUP * KV_HEADS, KV_HEADS, KV_HEADS], dim=1)
    if q_norm is not None and k_norm is not None:
        query, key = kernels.rms_norm(query, q_norm, eps), kernels.rms_norm(key, k_norm, eps)
    query, key = kernels.rotary_embedding(query, key, cos, sin)
    reference.store_kv(key, value, *caches, slot_mapping)
    return torch.cat([query, key, value], dim=1).flatten(1)


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize(("num_tokens", "head_dim", "rotary_dim"), SIZES)
def test_equals_one_after_the_other(
    isa: str, cache_dtype: torch.dtype, norms: bool, num_tokens: int, head_dim: int, rotary_dim: int
):
    arguments = make_arguments(num_tokens, head_dim, rotary_dim, norms)
    expected_caches = make_caches(head_dim, cache_dtype)
    expected = one_after_the_other(expected_caches, **arguments)
    for implementation in ("native", "torch"):
        kernels.set_implementation(implementation)
        caches = make_caches(head_dim, cache_dtype)
        qkv = arguments["qkv"].clone()
        kernels.rotate_and_store(**{**arguments, "qkv": qkv}, key_cache=caches[0], value_cache=caches[1])
        # Without norms every rounding is the same; the norm's sum has another order.
        error = 2e-6 if norms else 0.0
        torch.testing.assert_close(qkv, expected, atol=error, rtol=error)
        # A number on the edge between two of a narrow type's may fall to either side.
        step = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.int8: 1 / 120}[cache_dtype] if norms else 0.0
        for cache, other in zip(caches, expected_caches, strict=True):
            highest = float(dequantize(other).abs().max())
            torch.testing.assert_close(dequantize(cache), dequantize(other), atol=step * highest, rtol=step)


@pytest.mark.parametrize("norms", [False, True])
def test_a_token_does_not_know_the_others(isa: str, norms: bool):
    arguments = make_arguments(400, 64, 64, norms)
    together, alone = make_caches(64, torch.int8), make_caches(64, torch.int8)
    whole = arguments["qkv"].clone()
    kernels.rotate_and_store(**{**arguments, "qkv": whole}, key_cache=together[0], value_cache=together[1])
    for token in range(0, 400, 57):
        row = slice(token, token + 1)
        single = {name: arguments[name][row] for name in ("cos", "sin", "slot_mapping")}
        single["qkv"] = arguments["qkv"][row].clone()
        kernels.rotate_and_store(**{**arguments, **single}, key_cache=alone[0], value_cache=alone[1])
        assert torch.equal(single["qkv"], whole[row])
        block, offset = divmod(int(single["slot_mapping"]), BLOCK_SIZE)
        for cache, other in zip(together, alone, strict=True):
            assert torch.equal(dequantize(cache)[block, :, offset], dequantize(other)[block, :, offset])


@pytest.mark.parametrize("implementation", ["native", "torch"])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("qkv", {"qkv": torch.ones(3, 10 * 20, dtype=torch.float64)}),
        ("qkv", {"qkv": torch.ones(2, 10 * 20)}),
        ("qkv", {"qkv": torch.ones(3, 4 * 20)}),
        ("qkv", {"qkv": torch.ones(3, 10 * 20 + 1)}),
        ("cos", {"cos": torch.ones(3, 10, dtype=torch.bfloat16)}),
        ("cos", {"cos": torch.ones(3, 11), "sin": torch.ones(3, 11)}),
        ("sin", {"sin": torch.ones(3, 9)}),
        ("q_norm", {"q_norm": torch.ones(19)}),
        ("k_norm", {"k_norm": torch.ones(20, dtype=torch.bfloat16)}),
        ("slot_mapping", {"slot_mapping": torch.tensor([0, 1, NUM_BLOCKS * BLOCK_SIZE])}),
        ("slot_mapping", {"slot_mapping": torch.tensor([0, 1])[::1].int()}),
    ],
)
def test_wrong_tensor_is_named(implementation: Any, name: str, change: dict[str, Tensor]):
    kernels.set_implementation(implementation)
    caches = make_caches(20, torch.float32)
    arguments = {**make_arguments(3, 20, 20, True), **change}
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        kernels.rotate_and_store(**arguments, key_cache=caches[0], value_cache=caches[1])
    assert not any(elements(cache).any() for cache in caches)


def test_narrow_types_are_torchs_and_tritons():
    caches = make_caches(20, torch.bfloat16)
    arguments = make_arguments(3, 20, 20, True)
    for name in ("qkv", "q_norm", "k_norm"):
        arguments[name] = arguments[name].to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"^qkv must be float32"):
        kernels.rotate_and_store(**arguments, key_cache=caches[0], value_cache=caches[1])
    kernels.set_implementation("torch")
    expected_caches = make_caches(20, torch.bfloat16)
    expected = one_after_the_other(expected_caches, **{**arguments, "qkv": arguments["qkv"].clone()})
    kernels.rotate_and_store(**arguments, key_cache=caches[0], value_cache=caches[1])
    assert torch.equal(arguments["qkv"], expected)
    for cache, other in zip(caches, expected_caches, strict=True):
        assert torch.equal(elements(cache), elements(other))


def test_no_tokens():
    caches = make_caches(20, torch.float32)
    kernels.rotate_and_store(**make_arguments(0, 20, 20, False), key_cache=caches[0], value_cache=caches[1])
