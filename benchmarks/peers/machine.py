"""The machine: what it is, and what it can do at most."""

import json
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from peers.checkpoints import Shape
from peers.engines import THREADS

_SOURCE = Path(__file__).parent / "limits.cpp"
_SHOWN_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Limits:
    """Measured rates of THREADS threads: 10^9 bytes/s, and 10^9 operations/s (a multiply-add is two)."""

    read_gb_s: float
    float32_gops: float
    bfloat16_gops: float
    int8_gops: float

    def decode_rate(self, shape: Shape, number_format: str, batch: int, context: float) -> float:
        """Most decode tokens/s of a batch.

        A step reads all weights once and each sequence's keys and values, and multiplies each token with all
        weights; the two do not overlap, which no kernel does fully. Formats: bf16 has 2 bytes a weight and the
        bfloat16 rate (float32's where the CPU has none); int8 has 1 byte and the VNNI rate; int4 has 4.5 bits (a
        scale of 16 bits for each 32 weights) and the VNNI rate.
        """
        bytes_per_weight = {"bf16": 2, "int8": 1, "int4": 4.5 / 8}[number_format]
        read = shape.linear_parameters * bytes_per_weight + batch * context * shape.kv_bytes_per_token
        operations = 2 * shape.linear_parameters * batch
        return batch / (read / (self.read_gb_s * 1e9) + operations / (self._gops(number_format) * 1e9))

    def prefill_rate(self, shape: Shape, number_format: str) -> float:
        """Most prompt tokens/s: arithmetic alone, without the head, which prompt tokens but the last do not need."""
        return self._gops(number_format) * 1e9 / (2 * (shape.linear_parameters - shape.head_parameters))

    def _gops(self, number_format: str) -> float:
        if number_format == "bf16":
            return max(self.bfloat16_gops, self.float32_gops)
        return max(self.int8_gops, self.float32_gops)


def measure_limits(root: Path) -> Limits:
    """Compiles and runs limits.cpp; seconds."""
    program = root / "limits"
    options = ["-O3", "-march=native", "-ffast-math", "-std=c++17", "-pthread"]
    subprocess.run(["g++", *options, "-o", str(program), str(_SOURCE)], check=True, timeout=120)
    run = subprocess.run([str(program), str(THREADS)], check=True, capture_output=True, text=True, timeout=300)
    return Limits(**json.loads(run.stdout))


def describe_machine() -> dict[str, str]:
    """CPU, instructions, cores, memory, kernel."""
    info = dict(
        tuple(map(str.strip, line.split(":", 1)))
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if ":" in line
    )
    flags = info.get("flags", "").split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": info.get("model name", platform.machine()),
        "family and model": f"{info.get('cpu family')}, {info.get('model')}",
        "instructions": ", ".join(flag for flag in _SHOWN_FLAGS if flag in flags),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GiB",
        "system": f"Linux {platform.release().split('-')[0]}",
    }
