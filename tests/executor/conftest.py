"""Shared by the executor's tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small models compute faster on one thread, and the machine is shared."""
    torch.set_num_threads(1)
