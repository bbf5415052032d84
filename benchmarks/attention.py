"""Native paged attention against torch's scaled_dot_product_attention: `python -P benchmarks/attention.py`.

The physics. One decode step of one layer reads every key and value of the context once:
2 * batch * context * kv_heads * head_dim * element bytes (1.6 MB at context 1024 with SmolLM-135M's 3 KV heads of
64 in float32; half of that in bfloat16) and computes two multiply-adds per element and query head of its group, which
is little: its limit is the memory's read bandwidth. Prefill of n tokens reads little and computes:
4 * heads * head_dim * n * (n + 1) / 2 floating-point operations over the causal triangle; its limit is the matrix
product's rate in float32 (both kernels sum in float32). Both limits are measured here, in the same minute, with
torch's own operators.

The comparison. torch gets contiguous tensors [batch, heads, context, head_dim] of each layer, the best layout it can
have; ours reads through a shuffled block table out of one pool laid out as the server's
[blocks, layers, 2, kv heads, block size, head_dim]. Both walk over so many layers that no KV is in a cache when
its turn comes (a real step reads the weights in between). The two alternate, sample by sample, with a pause
before each: torch's OpenMP threads spin on for a while after their work, which would cost whoever comes next.
Figures are medians over samples; the machine's other load shows in both, so trust the ratios.

The last line is JSON: per case the microseconds per layer of both, ours / torch's, and the fraction of the limit.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from quire import kernels

# More than the last-level cache of the machines we measure on.
COLD_BYTES = 96 << 20
PAUSE_SECONDS = 0.02


@dataclass(frozen=True)
class Case:
    """One measurement: `batch` sequences of `context` tokens, of which the last `query_len` are new."""

    name: str
    batch: int
    context: int
    query_len: int


CASES = (
    Case("decode batch 1 context 1024", 1, 1024, 1),
    Case("decode batch 16 context 1024", 16, 1024, 1),
    Case("prefill 512", 1, 512, 512),
)


@dataclass(frozen=True)
class Shape:
    """One attention layer."""

    heads: int
    kv_heads: int
    head_dim: int
    block_size: int

    def kv_bytes(self, case: Case, dtype: torch.dtype) -> int:
        """Bytes of the keys and values that one layer reads."""
        return 2 * case.batch * case.context * self.kv_heads * self.head_dim * dtype.itemsize

    def flops(self, case: Case) -> int:
        """Operations of the two products over what each query sees."""
        keys = sum(range(case.context - case.query_len + 1, case.context + 1))
        return 4 * self.heads * self.head_dim * case.batch * keys


def _seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def read_bandwidth() -> float:
    """Bytes/s of a sum over memory far larger than the caches, the best of several."""
    memory = torch.ones(64 << 20)
    return memory.numel() * 4 / min(_seconds(lambda: memory.sum()) for _ in range(7))


def copy_bandwidth() -> float:
    """Bytes/s, read and written, of a copy."""
    source, target = torch.ones(32 << 20), torch.empty(32 << 20)
    return 2 * source.numel() * 4 / min(_seconds(lambda: target.copy_(source)) for _ in range(7))


def product_rate() -> float:
    """Operations/s of a float32 matrix product."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 2 * 1024**3 / min(_seconds(lambda: a @ b) for _ in range(9))


def _ours(shape: Shape, case: Case, dtype: torch.dtype, query: Tensor, layers: int) -> Callable[[], Tensor]:
    blocks_each = -(-case.context // shape.block_size)
    num_blocks = case.batch * blocks_each
    pool = torch.randn(num_blocks, layers, 2, shape.kv_heads, shape.block_size, shape.head_dim, dtype=dtype)
    tokens = case.batch * case.query_len
    metadata = kernels.AttentionMetadata(
        query_start=torch.arange(0, tokens + 1, case.query_len, dtype=torch.int32),
        context_lens=torch.full((case.batch,), case.context, dtype=torch.int32),
        block_tables=torch.randperm(num_blocks).int().view(case.batch, blocks_each),
        slot_mapping=torch.zeros(tokens, dtype=torch.int64),
    )
    scale = shape.head_dim**-0.5

    def run() -> Tensor:
        for layer in range(layers):
            result = kernels.paged_attention(query, pool[:, layer, 0], pool[:, layer, 1], metadata, scale=scale)
        return result

    return run


def _torch(shape: Shape, case: Case, dtype: torch.dtype, query: Tensor, layers: int) -> Callable[[], Tensor]:
    size = (layers, case.batch, shape.kv_heads, case.context, shape.head_dim)
    keys, values = torch.randn(size, dtype=dtype), torch.randn(size, dtype=dtype)
    query = query.view(case.batch, case.query_len, shape.heads, shape.head_dim).transpose(1, 2).contiguous()

    def run() -> Tensor:
        for key, value in zip(keys, values, strict=True):
            result = functional.scaled_dot_product_attention(
                query, key, value, is_causal=case.query_len > 1, enable_gqa=shape.heads != shape.kv_heads
            )
        return result

    return run


def measure(shape: Shape, case: Case, dtype: torch.dtype, samples: int) -> tuple[float, float]:
    """Median seconds per layer of (ours, torch's)."""
    layers = max(2, min(128, -(-COLD_BYTES // shape.kv_bytes(case, dtype))))
    if case.query_len > 1:
        layers = min(layers, 16)  # arithmetic, not memory: coldness does not matter
    query = torch.randn(case.batch * case.query_len, shape.heads, shape.head_dim, dtype=dtype)
    runs = (_ours(shape, case, dtype, query, layers), _torch(shape, case, dtype, query, layers))
    times: tuple[list[float], list[float]] = ([], [])
    for run in runs:
        run()
    for _ in range(samples):
        for run, taken in zip(runs, times, strict=True):
            time.sleep(PAUSE_SECONDS)
            taken.append(_seconds(run) / layers)
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    """Measure every case in float32 and bfloat16."""
    parser = argparse.ArgumentParser(description="Native paged attention against torch's SDPA.")
    parser.add_argument("--heads", type=int, default=9, help="query heads (default: SmolLM-135M's)")
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=kernels.get_num_threads())
    parser.add_argument("--isa", choices=kernels.available_isas(), default=kernels.current_isa())
    parser.add_argument("--samples", type=int, default=15)
    options = parser.parse_args()
    shape = Shape(options.heads, options.kv_heads, options.head_dim, options.block_size)
    kernels.set_num_threads(options.threads)
    kernels.set_isa(options.isa)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    read, copy, product = read_bandwidth(), copy_bandwidth(), product_rate()
    print(
        f"limits: read {read / 1e9:.1f} GB/s, copy {copy / 1e9:.1f} GB/s, product {product / 1e9:.0f} GFLOP/s float32"
    )
    results = []
    for case in CASES:
        for dtype in (torch.float32, torch.bfloat16):
            ours, theirs = measure(shape, case, dtype, options.samples)
            bytes_read, flops = shape.kv_bytes(case, dtype), shape.flops(case)
            limit = max(bytes_read / read, flops / product)
            name = str(dtype).removeprefix("torch.")
            print(
                f"{case.name}, {name}: {ours * 1e6:.0f} us a layer, torch {theirs * 1e6:.0f} us "
                f"({theirs / ours:.2f} times as fast); {bytes_read / ours / 1e9:.1f} GB/s, "
                f"{flops / ours / 1e9:.0f} GFLOP/s, {limit / ours:.2f} of the limit"
            )
            results.append(
                {
                    "case": case.name,
                    "dtype": name,
                    "us": round(ours * 1e6, 1),
                    "torch_us": round(theirs * 1e6, 1),
                    "speedup": round(theirs / ours, 3),
                    "of_limit": round(limit / ours, 3),
                }
            )
    print(
        json.dumps(
            {
                "isa": options.isa,
                "threads": options.threads,
                "shape": vars(shape),
                "read_gb_s": round(read / 1e9, 2),
                "copy_gb_s": round(copy / 1e9, 2),
                "product_gflop_s": round(product / 1e9, 1),
                "results": results,
            }
        )
    )


if __name__ == "__main__":
    main()
