"""Native sampling against the torch implementation: `python -P benchmarks/sampling.py`.

The physics. A row's logits are 4 * vocab bytes (197 KB at 49,152 tokens, 608 KB at 151,936), in a cache when the
head's product has just written them. A greedy row reads them once and compares: its limit is that read. A drawn row
reads them twice, since no weight exp((logit - max) / temperature) is known before the maximum is, and computes vocab
exponentials of some 16 vector instructions, which cost more than the reads. A filter (top-p, top-k, min-p) also
writes the weights, 4 * vocab bytes, and reads those again that may lie at its boundary: little where few tokens
hold most of the probability ("peaked" below, as a trained model's), several passes where many do ("flat").
Nothing is sorted but a few hundred candidates. Sorting, as torch does for a flat row, is vocab * log2(vocab)
comparisons.

The comparison. Both implementations sample the same rows from the same logits, which stay in a cache as far as they
fit. They alternate sample by sample, with a pause and an untimed call before each: torch's OpenMP threads spin on for a
while after their work (and wait for each other for milliseconds where the machine has other work: there, --threads 1
compares better). Figures are the minimum over samples, per row, of calls that return the tokens to Python; the read is
the logits' maximum over all rows at once, by torch, in the same turns. Trust the ratios.

The last line is JSON: per case the microseconds per row of both, torch's / ours, and ours / one read.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from quire import kernels
from quire.kernels import SAMPLING_ROW, SamplingBatch, native_sampling, torch_sampling

VOCABULARIES = (49_152, 151_936)
BATCHES = (1, 16, 64)
# Logits' standard deviation: of 49,152 tokens, top_p 0.95 keeps some 29,000 at 1 and some 20 at 6.
SCALES = {"flat": 1.0, "peaked": 6.0}
CASES: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "temperature 0.8": {"temperature": 0.8},
    "top_p 0.95": {"top_p": 0.95},
    "top_k 50": {"top_k": 50},
    "min_p 0.05": {"min_p": 0.05},
    "all three": {"top_p": 0.95, "top_k": 50, "min_p": 0.05},
}
PAUSE_SECONDS = 0.005


def batch_of(num_rows: int, fields: dict[str, float]) -> SamplingBatch:
    """Rows of equal parameters and different seeds."""
    rows = np.zeros(num_rows, SAMPLING_ROW)
    defaults = {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0, "num_logprobs": -1, "mask_row": -1}
    for name, value in (defaults | fields).items():
        rows[name] = value
    rows["seed"] = np.arange(num_rows)
    return SamplingBatch(rows, np.zeros((1, 1), np.int32))


def seconds(function: Callable[[], object], calls: int) -> float:
    """Of one of several calls, after the other implementation's threads have gone to sleep."""
    time.sleep(PAUSE_SECONDS)
    function()
    started = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - started) / calls


def measure(logits: Tensor, batch: SamplingBatch, samples: int) -> tuple[float, float, float]:
    """Least seconds per row of (native, torch, one read)."""
    own = logits.clone()  # to be overwritten; without penalties and the like, with what it held
    functions: tuple[tuple[Callable[[], object], int], ...] = (
        (lambda: native_sampling.sample(own, batch), 10),
        (lambda: torch_sampling.sample(own, batch), 1),
        (lambda: own.view(-1).max(), 10),
    )
    times = [[seconds(function, calls) for function, calls in functions] for _ in range(samples)]
    native, reference, read = np.min(times, axis=0) / len(logits)
    return native, reference, read


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description="Native sampling against torch.")
    parser.add_argument("--threads", type=int, default=kernels.get_num_threads())
    parser.add_argument("--isa", choices=kernels.available_isas(), default=kernels.current_isa())
    parser.add_argument("--samples", type=int, default=5)
    options = parser.parse_args()
    kernels.set_num_threads(options.threads)
    kernels.set_isa(options.isa)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    results = []
    for vocab_size in VOCABULARIES:
        for num_rows in BATCHES:
            for shape, scale in SCALES.items():
                logits = torch.randn(num_rows, vocab_size) * scale
                for name, fields in CASES.items():
                    # Greedy and temperature cost the same on any; torch sorts flat rows, which once shows enough.
                    if (shape == "peaked") == (name in ("greedy", "temperature 0.8")) and name != "top_p 0.95":
                        continue
                    samples = 1 if num_rows > 1 and shape == "flat" and name == "top_p 0.95" else options.samples
                    native, reference, read = measure(logits, batch_of(num_rows, fields), samples)
                    print(
                        f"vocabulary {vocab_size}, {num_rows} rows, {shape}, {name}: {native * 1e6:.0f} us a row, "
                        f"torch {reference * 1e6:.0f} us ({reference / native:.1f} times as fast), "
                        f"one read {read * 1e6:.0f} us"
                    )
                    results.append(
                        {
                            "vocab": vocab_size,
                            "rows": num_rows,
                            "shape": shape,
                            "case": name,
                            "us": round(native * 1e6, 1),
                            "torch_us": round(reference * 1e6, 1),
                            "speedup": round(reference / native, 2),
                            "reads": round(native / read, 2),
                        }
                    )
    print(json.dumps({"isa": options.isa, "threads": options.threads, "results": results}))


if __name__ == "__main__":
    main()
