"""Attention's machine code: both products on the matrix units, a loop without spills."""

from __future__ import annotations

import pytest
import torch

from quire import kernels
from quire.kernels.cache import SCALED_DTYPES, Cache, QuantizedCache

BF16, FP16, FP32, INT8, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.int8, torch.float8_e4m3fn


def make_cache(dtype: torch.dtype, num_kv_heads: int, head_dim: int) -> Cache:
    # The middle layer of three, as in the server's pool.
    shape = (8, 3, 2, num_kv_heads, 16, head_dim)
    data = torch.zeros(shape, dtype=torch.int8).view(dtype) if dtype in SCALED_DTYPES else torch.zeros(shape).to(dtype)
    return QuantizedCache(data[:, 1, 0], torch.zeros(shape[:-1])[:, 1, 0]) if dtype in SCALED_DTYPES else data[:, 1, 0]


def launch(
    dtype: torch.dtype, cache_dtype: torch.dtype, head_dim: int, group: int, window: int | None = None, context: int = 9
) -> None:
    num_kv_heads = 2
    cache = make_cache(cache_dtype, num_kv_heads, head_dim)
    metadata = kernels.AttentionMetadata(
        torch.tensor([0, 1], dtype=torch.int32),
        torch.tensor([context], dtype=torch.int32),
        torch.zeros(1, 100, dtype=torch.int32),
        torch.zeros(1, dtype=torch.int64),
    )
    query = torch.zeros(1, num_kv_heads * group, head_dim, dtype=dtype)
    kernels.paged_attention(query, cache, cache, metadata, scale=1.0, sliding_window=window)


def innermost_loop(sass: str, instruction: str) -> list[str]:
    """The lines of the smallest loop that holds the instruction's first and last occurrence."""
    lines = sass.splitlines()
    labels = {line.rstrip(": "): number for number, line in enumerate(lines) if line.startswith("LBB")}
    occurrences = [number for number, line in enumerate(lines) if f"{instruction}." in line]
    loops = []
    for end, line in enumerate(lines):
        start = labels.get(line.rstrip("; ").split()[-1], end) if "BRA " in line else end
        if start <= occurrences[0] and occurrences[-1] <= end:
            loops.append((end - start, start, end))
    _, start, end = min(loops)
    return lines[start : end + 1]


@pytest.mark.parametrize(
    ("dtype", "cache_dtype", "head_dim", "group", "window"),
    [
        (BF16, BF16, 128, 4, None),
        (BF16, BF16, 64, 8, 4096),
        (BF16, BF16, 256, 1, None),
        (FP16, FP16, 96, 1, None),
        (BF16, FP8, 128, 8, None),
        (FP16, INT8, 64, 4, None),
    ],
)
def test_products_are_on_the_matrix_units(compiled, dtype, cache_dtype, head_dim, group, window):
    launch(dtype, cache_dtype, head_dim, group, window)
    (code,) = compiled.named("attend")
    instruction = "HGMMA" if compiled.capability == 90 else "HMMA"
    loop = innermost_loop(code.sass, instruction)
    block_dim, keys = 1 << (head_dim - 1).bit_length(), 64 if compiled.capability == 90 and head_dim <= 128 else 32
    if instruction == "HGMMA":  # a warpgroup's 64 rows at a time, 16 elements deep
        scores, values = block_dim // 16, keys // 16
        # Asynchronous: one wait for each product, not for each instruction.
        assert sum("WARPGROUP.DEPBAR" in line for line in loop) <= 4
    else:  # 16 rows and 8 columns at a time, 16 deep; of 8 warps two have the same rows, and half of head_dim each
        scores, values = keys // 8 * (block_dim // 16), block_dim // 8 * (keys // 16) * 4 // code.num_warps
    assert sum(f"{instruction}." in line for line in loop) >= scores + values
    assert not [line for line in loop if "STL" in line or "LDL" in line], "registers are spilled in the loop"


def test_the_rest(compiled):
    """Products of float32 are computed in full precision, by the ordinary units; the merge of what was split."""
    launch(FP32, FP32, 64, 4, context=1500)
    (code,) = compiled.named("attend")
    assert code.count("HGMMA") == code.count("HMMA") == 0
    assert not [line for line in innermost_loop(code.sass, "MUFU") if "STL" in line or "LDL" in line]
    (merge,) = compiled.named("merge")
    assert merge.spills == 0
