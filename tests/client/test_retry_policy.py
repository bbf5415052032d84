from __future__ import annotations

import subprocess
import sys

import pytest

from quire.client import RetryPolicy
from quire.errors import InvalidRequestError


def test_backoff_grows_to_its_limit() -> None:
    policy = RetryPolicy(initial_backoff=0.1, max_backoff=0.5, multiplier=2)
    for repeat, limit in enumerate([0.1, 0.2, 0.4, 0.5, 0.5]):
        waits = [policy.backoff(repeat) for _ in range(200)]
        assert 0 <= min(waits) < limit / 2 < max(waits) <= limit


def test_at_least_one_attempt() -> None:
    with pytest.raises(InvalidRequestError):
        RetryPolicy(max_attempts=0)


def test_the_client_imports_neither_the_server_nor_the_model() -> None:
    code = "import quire.client, sys; print([m for m in ('fastapi', 'transformers', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
