"""Free memory, also under a container's limit."""

from __future__ import annotations

from pathlib import Path

import torch

from quire.executor.memory import available_bytes, total_bytes

CPU = torch.device("cpu")


def test_without_a_limit_it_is_the_hosts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(CPU, tmp_path) > 1 << 20
    assert available_bytes(CPU, tmp_path / "no such folder") > 1 << 20


def test_a_control_group_limits_it(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 200000\n")
    assert available_bytes(CPU, tmp_path) == 500_000


def test_all_memory_is_that_of_the_group_where_there_is_a_limit(tmp_path: Path) -> None:
    hosts = total_bytes(CPU, tmp_path / "no such folder")
    assert hosts >= available_bytes(CPU, tmp_path / "no such folder")
    (tmp_path / "memory.max").write_text("max\n")
    assert total_bytes(CPU, tmp_path) == hosts
    (tmp_path / "memory.max").write_text("1000000\n")
    assert total_bytes(CPU, tmp_path) == 1_000_000
