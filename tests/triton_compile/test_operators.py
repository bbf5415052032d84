"""The small operators as machine code: nothing spills, and memory is accessed 128 bits at a time."""

from __future__ import annotations

import pytest
import torch

from quire import kernels
from quire.kernels import Cache, QuantizedCache
from quire.kernels.cache import SCALED_DTYPES

# Llama-3.1-8B's.
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 4096, 14336, 32, 8, 128, 16


def bf16(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


def wide_accesses(sass: str, instruction: str) -> int:
    """Accesses to global memory of 128 bits; `instruction` is LDG or STG."""
    return sum(instruction in line and ".128" in line for line in sass.splitlines())


def check(code, loads: int, stores: int) -> None:
    assert code.spills == 0
    assert wide_accesses(code.sass, "LDG") >= loads
    assert wide_accesses(code.sass, "STG") >= stores


# One is Qwen2.5-0.5B's, no power of two.
@pytest.mark.parametrize("size", [896, HIDDEN])
def test_norms(compiled, size):
    x, weight = bf16(3, size), bf16(size)
    kernels.rms_norm(x, weight, 1e-6)
    kernels.fused_add_rms_norm(x, x, weight, 1e-6)
    norm, fused = compiled.named("_norm_rows")
    check(norm, loads=2, stores=1)
    check(fused, loads=3, stores=2)


def test_silu_and_mul(compiled):
    kernels.silu_and_mul(bf16(3, 2 * INTERMEDIATE))
    check(compiled.named("_gate")[0], loads=2, stores=1)


def test_copy_blocks(compiled):
    kernels.copy_blocks(torch.zeros(4, 2**16, dtype=torch.uint8), torch.tensor([0, 1]), torch.tensor([2, 3]))
    check(compiled.named("_copy_tile")[0], loads=4, stores=4)


def make_cache(dtype: torch.dtype) -> Cache:
    shape = (4, KV_HEADS, BLOCK_SIZE)
    data = torch.zeros(*shape, HEAD_DIM, dtype=dtype)
    return QuantizedCache(data, torch.zeros(shape)) if dtype in SCALED_DTYPES else data


@pytest.mark.parametrize(
    ("cache_dtype", "norms"), [(torch.bfloat16, True), (torch.int8, False), (torch.float8_e4m3fn, True)]
)
def test_rotate_and_store(compiled, cache_dtype, norms):
    if cache_dtype == torch.float8_e4m3fn and compiled.capability < 89:
        pytest.skip("there is no conversion to FP8 (e4m3) before 8.9")
    cache, angles = make_cache(cache_dtype), torch.zeros(3, HEAD_DIM // 2)
    weight = bf16(HEAD_DIM) if norms else None
    qkv, slots = bf16(3, (HEADS + 2 * KV_HEADS) * HEAD_DIM), torch.arange(3)
    kernels.rotate_and_store(qkv, angles, angles, cache, cache, slots, weight, weight, 1e-6)
    (code,) = compiled.named("_rotate_heads")
    # The two halves of queries, of keys and of values; keys and values in 8 bits are written 64 bits at a time.
    check(code, loads=6, stores=8 if cache_dtype == torch.bfloat16 else 4)


@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, *SCALED_DTYPES])
def test_store_kv(compiled, cache_dtype):
    if cache_dtype == torch.float8_e4m3fn and compiled.capability < 89:
        pytest.skip("there is no conversion to FP8 (e4m3) before 8.9")
    cache, new = make_cache(cache_dtype), bf16(3, KV_HEADS, HEAD_DIM)
    kernels.store_kv(new, new, cache, cache, torch.arange(3))
    (code,) = compiled.named("_store_heads")
    check(code, loads=2, stores=2 if cache_dtype == torch.bfloat16 else 0)


def test_take_last_tokens(compiled):
    kernels.take_last_tokens(torch.zeros(300, dtype=torch.int32), torch.zeros(64, dtype=torch.int32))
    assert compiled.named("_take")
