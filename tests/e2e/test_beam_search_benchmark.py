"""The benchmark of what beams share holds what the docs say of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "beam_search.py"


def test_six_beams_save_more_than_half_of_the_blocks():
    run = subprocess.run(
        [sys.executable, "-P", BENCHMARK, "--prompts", "1"], capture_output=True, text=True, timeout=110
    )
    assert run.returncode == 0, run.stdout + run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["sharegpt_average_6"] >= 0.55
    assert result["sharegpt_peak_6"] >= 0.55
    # Short outputs: the beams have the one full block of the prompt in common at least.
    assert all(share > 0.05 for name, share in result.items() if name.startswith("alpaca_average"))
