"""Threads by what the process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quire.executor.processors import usable_processors


@pytest.fixture(autouse=True)
def eight_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


@pytest.mark.parametrize(
    ("share", "usable"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("6400000 100000", 8),
    ],
)
def test_share_of_the_control_group(tmp_path: Path, share: str, usable: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{share}\n")
    assert usable_processors(tmp_path) == usable


def test_no_control_group(tmp_path: Path) -> None:
    assert usable_processors(tmp_path) == 8
