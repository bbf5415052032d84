"""The benchmark of GPU executors: its report, and the whole program with a small model on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu_bench.machine import Limits, Machine
from gpu_bench.report import Row, markdown
from gpu_bench.run import Run
from gpu_bench.shapes import SHAPES

ROOT = Path(__file__).parents[2]
LIMITS = Limits(bandwidth=3e12, matrix_rate=700e12)
MACHINE = Machine("a card", {"torch": "1.0"})


def test_a_row_is_told_as_ratios_to_the_limit_and_to_each_peer() -> None:
    row = Row("m", "", "decode 16", 16, 0.010, 0.008, {"generate": 0.030, "continuous batching": "it broke"})
    assert row.share_of_limit == pytest.approx(0.8)
    assert row.times("generate") == pytest.approx(3.0)
    assert row.times("continuous batching") is None
    table = markdown([row], ["generate", "continuous batching"], LIMITS, MACHINE)
    assert "| m |  | decode 16 | 10.000 | 1,600 | 80% | 3.00 | failed (1) |" in table
    assert "1. it broke" in table
    assert "a card: 3000 GB/s" in table and "700.0 TFLOP/s" in table


def test_what_failed_is_told_and_not_left_out() -> None:
    row = Row("m", "FP8 KV", "decode 1", 1, "no such type", None)
    assert "| m | FP8 KV | decode 1 | failed (1) | – | – | – |" in markdown([row], ["generate"], LIMITS, MACHINE)
    assert row.as_json()["ms"] == "no such type"


def test_what_batch_invariance_costs_is_a_ratio() -> None:
    run = Run(torch.device("cpu"), "float32", None, LIMITS, 0.0)
    run.rows = [Row("m", "", "decode 1", 1, 0.011), Row("m", "no batch invariance", "decode 1", 1, 0.010)]
    assert run.cost_of_invariance() == {"m decode 1": 1.1}


def test_parameters_are_those_of_the_models() -> None:
    """8.03 billion and 0.596 billion in their cards; less the embeddings, and the head of the first."""
    llama, qwen = SHAPES
    assert llama.matrix_parameters == 8_030_261_248 - 2 * 128256 * 4096 - 65 * 4096
    assert qwen.matrix_parameters == pytest.approx(440e6, rel=0.01)


@pytest.mark.slow
def test_the_program_ends_with_one_line_of_json() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gpu_bench", "--tiny", "--device", "cpu", "--budget", "240"],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'benchmarks'}", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["tiny"] is True, "its figures are never published"
    rows = {(row["variant"], row["work"]): row for row in result["rows"]}
    for work in ("decode 1", "decode 4", "prefill 64"):
        assert rows["", work]["ms"] > 0
        for peer in ("generate", "continuous batching"):
            assert rows["", work]["times_peer"][peer] > 0, rows["", work]["peers_ms"][peer]
    assert "cuda" in rows["FP8 KV", "decode 1"]["ms"], "what a CPU cannot do is told with its reason"
