"""Finds the fastest tiles of a model's products on this machine's GPU, and writes them where executors look for them.

    python tools/tune_kernels.py MODEL [--dtype bfloat16] [--fp8] [--output FILE]

MODEL is a folder with a config.json. Without --output the machine's own cache is written; a file of that kind in
kernels/triton/configs/ is shipped. No bit of a result depends on a table (kernels/triton/linear_plan.py), so executors
with different ones may share a pool. Each candidate is compiled once, in seconds: expect half an hour or more.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from quire.executor.model_config import ModelConfig, load_model_config
from quire.kernels.triton.linear_plan import (
    ROW_CLASSES,
    Tiles,
    default_tiles,
    sections,
    shape_classes,
)
from quire.kernels.triton.tuning import Config, Gpu, Table, cache_file, gpu_of

# Sums that one thread holds in registers; beyond it the compiler spills.
_MAX_SUMS = 192

#: (outputs, inputs) of a matrix.
Shape = tuple[int, int]
#: Seconds of a product with so many rows, or infinity if it cannot be launched.
Measure = Callable[[Shape, int, Tiles], float]


def matrices(config: ModelConfig, fp8: bool) -> list[Shape]:
    """A model's matrices, each shape once; the head is not held in FP8."""
    hidden, heads = config.hidden_size, config.num_heads * config.head_dim
    shapes = [
        (heads + 2 * config.num_kv_heads * config.head_dim, hidden),
        (hidden, heads),
        (2 * config.intermediate_size, hidden),
        (hidden, config.intermediate_size),
    ]
    return list(dict.fromkeys(shapes if fp8 else [*shapes, (config.vocab_size, hidden)]))


def candidates(rows: int, shape: Shape, dtype: torch.dtype, gpu: Gpu) -> Iterator[Tiles]:
    """The default first, then what may be faster and fits the GPU."""
    count = sections(*shape, dtype.itemsize).count
    default = default_tiles(rows, count, dtype, gpu)
    yield default
    heights = [height for height in (16, 32, 64, 128, 256) if height < 2 * max(rows, 64)]
    for block_m, block_n in itertools.product(heights, (32, 64, 128, 256)):
        group_m = 1 if rows <= block_m else 8
        for split, num_warps, num_stages in itertools.product((False, True), (4, 8), (3, 4, 6)):
            tiles = Tiles(block_m, block_n, group_m, split, num_warps, num_stages)
            sums = 1 + (count > 1 and not split) + (dtype.itemsize == 1)
            held = sums * block_m * block_n / (32 * num_warps)
            useless = split and count == 1
            if tiles != default and not useless and held <= _MAX_SUMS and tiles.problem(dtype, gpu) is None:
                yield tiles


def tune(
    shapes: list[Shape], dtype: torch.dtype, gpu: Gpu, measure: Measure, report: Callable[[str], None]
) -> dict[str, Config]:
    """The fastest tiles of each shape and class of rows: entries of a table."""
    found: dict[str, Config] = {}
    for shape, rows in itertools.product(shapes, (*ROW_CLASSES, 2 * ROW_CLASSES[-1])):
        times = {tiles: measure(shape, rows, tiles) for tiles in candidates(rows, shape, dtype, gpu)}
        default = next(iter(times))
        best = min(times, key=times.__getitem__)
        name = shape_classes(rows, *shape, dtype)[0]
        report(f"{name}: {times[default] * 1e6:.1f} µs by default, {times[best] * 1e6:.1f} µs with {best}")
        if math.isfinite(times[best]):
            found[name] = best.config
    return found


def merged(old: Table | None, gpu: Gpu, entries: dict[str, Config], origin: str) -> Table:
    """A table with new entries of the product; other kernels' and shapes' stay."""
    kernels = dict(old.kernels) if old else {}
    kernels["linear"] = kernels.get("linear", {}) | entries
    return Table(origin, (gpu.name,), True, kernels)


def gpu_measure(dtype: torch.dtype) -> Measure:
    """Medians of launches that find nothing in the L2."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    from quire.kernels.triton.linear import product

    def measure(shape: Shape, rows: int, tiles: Tiles) -> float:
        outputs, inputs = shape
        x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16).to(dtype)
        weight = torch.empty(outputs, inputs, device="cuda", dtype=torch.bfloat16).normal_(std=0.02).to(dtype)
        scales = (torch.ones(rows, device="cuda"), torch.ones(outputs, device="cuda")) if dtype.itemsize == 1 else None
        result = dtype if scales is None else torch.bfloat16
        try:
            milliseconds = do_bench(lambda: product(x, weight, None, result, scales, tiles), return_mode="median")
        except OutOfResources:
            return math.inf
        return float(milliseconds) / 1e3

    return measure


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--fp8", action="store_true", help="the products of --quantization fp8")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("there is no CUDA device")
    gpu = gpu_of(torch.device("cuda"))
    dtype = torch.float8_e4m3fn if arguments.fp8 else getattr(torch, arguments.dtype)
    path = arguments.output or cache_file(gpu.name)
    old = Table.parse(path.read_text(), str(path)) if path.exists() else None
    shapes = matrices(load_model_config(arguments.model), arguments.fp8)
    entries = tune(shapes, dtype, gpu, gpu_measure(dtype), print)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(merged(old, gpu, entries, str(path)).text())
    print(f"{len(entries)} entries written to {path}")


if __name__ == "__main__":
    main()
