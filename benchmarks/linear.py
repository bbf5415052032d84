"""Packed linear layers in every format: `python -P benchmarks/linear.py`.

The physics. A product of M rows with a weight matrix reads every weight once and computes 2 * M operations for each. At
M = 1 its limit is memory: bytes of the weights over the read bandwidth. As M grows it becomes arithmetic: float32
multiply-adds for all formats but int8, whose dot products of bytes do twice to four times as much, and bfloat16 where
the CPU has dot products for it. The limits here are measured by the same program as for `make bench-peers`.

What is measured. All linear layers of SmolLM-135M's shape but the head, one after the other, as a step meets them: 106
million weights, of which no cache holds enough to matter. torch's own product of the same rows in bfloat16 and float32
runs in turn with ours, with a pause before each sample, since torch's OpenMP threads spin on for a while after their
work. Figures are medians. Every product is a call from Python here, which costs some 20 us and lets our other threads
fall asleep: at few rows that shows, and a whole step, which is one call, does better (`make bench-peers`).

The last line is JSON: for each format and M the milliseconds, GB/s of weights, Gop/s and the share of the limit.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from quire import kernels

sys.path.insert(0, str(Path(__file__).parent))
from peers.machine import Limits, measure_limits

LAYERS = 30
PAUSE_SECONDS = 0.02
# [out, in] of a layer: queries, keys and values; the attention's output; gate and up; down.
SHAPES = ((960, 576), (576, 576), (3072, 576), (576, 1536))
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Packed linear layers.")
    parser.add_argument("--formats", default=",".join(kernels.PACKED_FORMATS))
    parser.add_argument("--rows", default="1,4,16,64,512")
    parser.add_argument("--samples", type=int, default=7)
    parser.add_argument("--threads", type=int, default=kernels.get_num_threads())
    parser.add_argument("--isa", default=kernels.current_isa(), choices=kernels.available_isas())
    options = parser.parse_args()
    kernels.set_num_threads(options.threads)
    kernels.set_isa(options.isa)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        limits = measure_limits(Path(folder))
    print(limits, flush=True)
    results = []
    for name in options.formats.split(","):
        packed, plain = make_layers(name)
        for rows in map(int, options.rows.split(",")):
            results.append(compare(name, packed, plain, rows, options.samples, limits))
    print(json.dumps({"isa": options.isa, "threads": options.threads, "limits": vars(limits), "results": results}))


def make_layers(name: kernels.PackedFormat) -> tuple[list[kernels.PackedWeight], list[Tensor]]:
    """All matrices, packed; and as torch would have them, if it can."""
    packed, plain = [], []
    for _ in range(LAYERS):
        for out_features, in_features in SHAPES:
            weight = torch.randn(out_features, in_features) * in_features**-0.5
            weight = weight if name == "float32" else weight.bfloat16()
            packed.append(kernels.pack_weight(weight, name))
            if name in TORCH_DTYPES:
                plain.append(weight)
    return packed, plain


def compare(
    name: str, packed: list[kernels.PackedWeight], plain: list[Tensor], rows: int, samples: int, limits: Limits
) -> dict[str, object]:
    """One format and number of rows; samples in turn with torch's."""
    inputs = {size: torch.randn(rows, size) for size in {weight.in_features for weight in packed}}
    theirs_inputs = {size: x.to(TORCH_DTYPES.get(name, torch.float32)) for size, x in inputs.items()}
    ours, theirs = [], []
    for _ in range(samples):
        ours.append(timed(lambda: [kernels.linear(inputs[weight.in_features], weight) for weight in packed]))
        if plain:
            theirs.append(
                timed(lambda: [functional.linear(theirs_inputs[weight.shape[1]], weight) for weight in plain])
            )
    seconds = statistics.median(ours)
    num_bytes = sum(weight.data.numel() for weight in packed)
    operations = sum(2 * rows * weight.out_features * weight.in_features for weight in packed)
    limit = max(num_bytes / (limits.read_gb_s * 1e9), operations / (rate(name, limits) * 1e9))
    result: dict[str, object] = {
        "format": name,
        "rows": rows,
        "ms": round(seconds * 1e3, 2),
        "gb_s": round(num_bytes / seconds / 1e9, 1),
        "gop_s": round(operations / seconds / 1e9, 1),
        "of_limit": round(limit / seconds, 2),
        "torch_ms": round(statistics.median(theirs) * 1e3, 2) if theirs else None,
    }
    print(result, flush=True)
    return result


def rate(name: str, limits: Limits) -> float:
    """10^9 operations/s that the format's instructions allow."""
    if name == "int8":
        return max(limits.int8_gops, limits.float32_gops)
    if name == "bfloat16":
        return max(limits.bfloat16_gops, limits.float32_gops)
    return limits.float32_gops


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    time.sleep(PAUSE_SECONDS)
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
