"""The benchmark of memory use holds what the README says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "kv_utilization.py"


def test_at_least_95_percent_and_4_8_times_the_users():
    run = subprocess.run([sys.executable, "-P", BENCHMARK], capture_output=True, text=True, timeout=110)
    assert run.returncode == 0, run.stdout + run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["paged_utilization"] >= 0.95
    assert result["contiguous_utilization"] < 0.21
    assert result["users_ratio"] >= 4.8
