"""Quire's executor on a GPU: `make bench-gpu` (benchmarks/ is on the path: `python -m gpu_bench`), some nine minutes.

The physics. A decode step reads every weight once, whatever the batch, and the KV of every sequence: its limit is
(weights + KV bytes) / bandwidth. Prefill multiplies every token with every weight: its limit is
2 * parameters * tokens / matrix rate. (Of the parameters only the layers' matrices count: the vocabulary's is used for
the last token alone.) Both rates are measured here first: a copy within the device, read and written, and a product of
square matrices in bfloat16. Rows with FP8 are held against the same two.

The comparison. Random weights, random prompts, greedy, nothing ends early. Ours is the executor's own code in this
process (plans in, results out, CUDA graphs captured, every prompt really computed into the cache), not a server:
gateway and scheduler are processes of their own that work meanwhile. Peers are Hugging Face `generate` with a static
cache, which it compiles, and transformers' continuous batching. All take turns, round after round, and figures are
medians; where two caches do not fit the device together, each gives its own back before the other's turn. First all of
ours is measured alone; peers then have the time that is left (--budget), most telling cases first, and whatever fails
or is not reached says so.

The last line is JSON: the machine, the limits, every row, and the cost of batch invariance as a ratio.
`--tiny --device cpu` runs the same program with a small model; its figures mean nothing.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from gpu_bench.engine import Workload
from gpu_bench.machine import Machine, measure_limits
from gpu_bench.report import markdown
from gpu_bench.run import PEERS, VARIANTS, Run
from gpu_bench.shapes import SHAPES, TINY
from quire.executor.cuda_setup import set_up_cuda

WORKLOAD = Workload(batches=(1, 16, 64, 256), context=1024, steps=64, warm_up=8, prefill=2048, budget=8192)
TINY_WORKLOAD = Workload(batches=(1, 4), context=32, steps=4, warm_up=2, prefill=64, budget=64)


def main() -> None:
    """Measure, report."""
    options = _parse()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no usable CUDA device")
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    deadline = time.monotonic() + options.budget
    limits = measure_limits(device, 1 << 22 if options.tiny else 1 << 32, 256 if options.tiny else 8192, 10)
    run = Run(device, dtype, TINY_WORKLOAD if options.tiny else WORKLOAD, limits, deadline)
    shapes = [TINY] if options.tiny else [shape for shape in SHAPES if options.model in ("all", shape.name)]
    set_up_cuda()
    with tempfile.TemporaryDirectory() as folder:
        folders = {shape.name: shape.write(Path(folder), getattr(torch, dtype)) for shape in shapes}
        for shape in shapes:
            for variant in VARIANTS:
                run.measure_ours(shape, variant, folders[shape.name])
        if not options.no_peers:
            # torch's default, which peers run with; our own products are not torch's.
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
            for shape in shapes:
                run.measure_peers(shape, folders[shape.name])
    machine = Machine.of(device)
    if options.tiny:
        print("A test of the program: these figures mean nothing.\n")
    print(markdown(run.rows, list(PEERS), run.limits, machine))
    print()
    print(json.dumps(run.as_json(machine, tiny=options.tiny)))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_bench", description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", choices=["all", *(shape.name for shape in SHAPES)], default="all")
    parser.add_argument("--budget", type=float, default=520.0, help="seconds for all of it")
    parser.add_argument("--no-peers", action="store_true", help="measure Quire alone")
    parser.add_argument("--tiny", action="store_true", help="a small model: whether the program works")
    return parser.parse_args()


if __name__ == "__main__":
    main()
