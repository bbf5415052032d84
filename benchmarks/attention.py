"""Native paged attention against torch's scaled_dot_product_attention: `python -P benchmarks/attention.py`.

The physics. One decode step of one layer reads every key and value of the context once:
2 * batch * context * kv_heads * head_dim * element bytes (1.6 MB at context 1024 with SmolLM-135M's 3 KV heads of
64 in float32; half of that in bfloat16; in int8 a quarter, and 4 bytes for each head's scale) and computes two
multiply-adds per element and query head of its group, which is little: its limit is the memory's read bandwidth.
Prefill of n tokens reads little and computes: 4 * heads * head_dim * n * (n + 1) / 2 floating-point operations over
the causal triangle; its limit is the matrix product's rate in float32 (both kernels sum in float32). Both limits are
measured here, before each case and with torch's own operators, since other load on the machine moves them.

The comparison. torch gets contiguous tensors [batch, heads, context, head_dim] of each layer, the best layout it can
have, and queries of the cache's type; ours gets float32 queries, as the forward pass has them, and reads through a
shuffled block table out of one pool laid out as the server's [blocks, layers, 2, kv heads, block size, head_dim]. Both
walk over so many layers that no KV is in a cache when its turn comes (a real step reads the weights in between). The
two alternate, sample by sample, with a pause before each: torch's OpenMP threads spin on for a while after their work,
which would cost whoever comes next. Figures are minima over samples: other load only ever adds. With --threads 1 the
clock is the thread's own processor time, which a busy machine stretches less. torch has no int8.

The last line is JSON: per case the microseconds per layer of both, ours / torch's, and the fraction of the limit.
"""

import argparse
import json
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
    *(Case(f"decode batch {b} context {c}", b, c, 1) for b in (1, 16, 64) for c in (128, 1024, 4096)),
    *(Case(f"prefill {n}", 1, n, n) for n in (512, 2048)),
)
DTYPES = (torch.float32, torch.bfloat16, torch.int8)
SCALE_BYTES = 4


@dataclass(frozen=True)
class Shape:
    """One attention layer."""

    heads: int
    kv_heads: int
    head_dim: int
    block_size: int

    def kv_bytes(self, case: Case, dtype: torch.dtype) -> int:
        """Bytes of the keys, values and scales that one layer reads."""
        scale = SCALE_BYTES if dtype == torch.int8 else 0
        return 2 * case.batch * case.context * self.kv_heads * (self.head_dim * dtype.itemsize + scale)

    def flops(self, case: Case) -> int:
        """Operations of the two products over what each query sees."""
        keys = sum(range(case.context - case.query_len + 1, case.context + 1))
        return 4 * self.heads * self.head_dim * case.batch * keys


def _seconds(function: Callable[[], object]) -> float:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    function()
    return clock() - started


class Limits:
    """What the machine can do just now."""

    def __init__(self) -> None:
        self._memory = torch.ones(64 << 20)
        self._factors = torch.randn(2, 1024, 1024)

    def read_bandwidth(self) -> float:
        """Bytes/s of a sum over memory far larger than the caches, the best of several."""
        return self._memory.numel() * 4 / min(_seconds(self._memory.sum) for _ in range(7))

    def product_rate(self) -> float:
        """Operations/s of a float32 matrix product, the best of several."""
        a, b = self._factors
        return 2 * 1024**3 / min(_seconds(lambda: a @ b) for _ in range(9))


def _layers_of_pool(shape: Shape, num_blocks: int, layers: int, dtype: torch.dtype) -> list[list[kernels.Cache]]:
    """(keys, values) of each layer. Every block holds the same numbers: they do not matter, and drawing takes long."""
    sizes = (num_blocks, layers, 2, shape.kv_heads, shape.block_size, shape.head_dim)
    numbers = torch.randn(sizes[3:])
    if dtype != torch.int8:
        pool = torch.empty(sizes, dtype=dtype).copy_(numbers)
        return [[pool[:, layer, i] for i in range(2)] for layer in range(layers)]
    data, scales = torch.empty(sizes, dtype=dtype).copy_(numbers * 30), torch.full(sizes[:5], 1 / 30)
    return [
        [kernels.QuantizedCache(data[:, layer, i], scales[:, layer, i]) for i in range(2)] for layer in range(layers)
    ]


def _ours(shape: Shape, case: Case, dtype: torch.dtype, query: Tensor, layers: int) -> Callable[[], Tensor]:
    blocks_each = -(-case.context // shape.block_size)
    num_blocks = case.batch * blocks_each
    pool = _layers_of_pool(shape, num_blocks, layers, dtype)
    tokens = case.batch * case.query_len
    metadata = kernels.AttentionMetadata(
        query_start=torch.arange(0, tokens + 1, case.query_len, dtype=torch.int32),
        context_lens=torch.full((case.batch,), case.context, dtype=torch.int32),
        block_tables=torch.randperm(num_blocks).int().view(case.batch, blocks_each),
        slot_mapping=torch.zeros(tokens, dtype=torch.int64),
    )
    scale = shape.head_dim**-0.5

    def run() -> Tensor:
        for keys, values in pool:
            result = kernels.paged_attention(query, keys, values, metadata, scale=scale)
        return result

    return run


def _torch(shape: Shape, case: Case, dtype: torch.dtype, query: Tensor, layers: int) -> Callable[[], Tensor]:
    size = (layers, case.batch, shape.kv_heads, case.context, shape.head_dim)
    keys, values = (torch.empty(size, dtype=dtype).copy_(torch.randn(size[3:])) for _ in range(2))
    query = query.view(case.batch, case.query_len, shape.heads, shape.head_dim).transpose(1, 2).contiguous().to(dtype)

    def run() -> Tensor:
        for key, value in zip(keys, values, strict=True):
            result = functional.scaled_dot_product_attention(
                query, key, value, is_causal=case.query_len > 1, enable_gqa=shape.heads != shape.kv_heads
            )
        return result

    return run


def measure(shape: Shape, case: Case, dtype: torch.dtype, samples: int) -> tuple[float, float | None]:
    """Least seconds per layer of (ours, torch's, if it has the type)."""
    layers = max(2, min(64, -(-COLD_BYTES // shape.kv_bytes(case, dtype))))
    if case.query_len > 1:
        layers = min(layers, 4)  # arithmetic, not memory: coldness does not matter
    query = torch.randn(case.batch * case.query_len, shape.heads, shape.head_dim)
    runs = [_ours(shape, case, dtype, query, layers)]
    if dtype != torch.int8:
        runs.append(_torch(shape, case, dtype, query, layers))
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(samples):
        for run, taken in zip(runs, times, strict=True):
            time.sleep(PAUSE_SECONDS)
            taken.append(_seconds(run) / layers)
    return min(times[0]), min(times[1]) if len(times) > 1 else None


def main() -> None:
    """Measure every case with every type of cache."""
    parser = argparse.ArgumentParser(description="Native paged attention against torch's SDPA.")
    parser.add_argument("--heads", type=int, default=9, help="query heads (default: SmolLM-135M's)")
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=kernels.get_num_threads())
    parser.add_argument("--isa", choices=kernels.available_isas(), default=kernels.current_isa())
    parser.add_argument("--samples", type=int, default=7)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    shape = Shape(options.heads, options.kv_heads, options.head_dim, options.block_size)
    kernels.set_num_threads(options.threads)
    kernels.set_isa(options.isa)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    limits = Limits()
    results = []
    for case in (case for case in CASES if options.only in case.name):
        for dtype in DTYPES:
            read, product = limits.read_bandwidth(), limits.product_rate()
            ours, theirs = measure(shape, case, dtype, options.samples)
            bytes_read, flops = shape.kv_bytes(case, dtype), shape.flops(case)
            limit = max(bytes_read / read, flops / product)
            name = str(dtype).removeprefix("torch.")
            compared = "" if theirs is None else f", torch {theirs * 1e6:.0f} us ({theirs / ours:.2f} times as long)"
            print(
                f"{case.name}, {name}: {ours * 1e6:.0f} us a layer{compared}; {bytes_read / ours / 1e9:.1f} of "
                f"{read / 1e9:.1f} GB/s, {flops / ours / 1e9:.0f} of {product / 1e9:.0f} GFLOP/s: "
                f"{limit / ours:.2f} of the limit",
                flush=True,
            )
            results.append(
                {
                    "case": case.name,
                    "dtype": name,
                    "us": round(ours * 1e6, 1),
                    "torch_us": None if theirs is None else round(theirs * 1e6, 1),
                    "speedup": None if theirs is None else round(theirs / ours, 3),
                    "read_gb_s": round(read / 1e9, 2),
                    "product_gflop_s": round(product / 1e9, 1),
                    "of_limit": round(limit / ours, 3),
                }
            )
    print(json.dumps({"isa": options.isa, "threads": options.threads, "shape": vars(shape), "results": results}))


if __name__ == "__main__":
    main()
