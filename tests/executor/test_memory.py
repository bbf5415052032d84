"""The host's memory, also under a container's limit."""

from __future__ import annotations

from pathlib import Path

from quire.executor.memory import host_memory


def test_without_a_limit_it_is_the_hosts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    assert host_memory(tmp_path).available_bytes > 1 << 20
    assert host_memory(tmp_path / "no such folder").available_bytes > 1 << 20


def test_a_control_group_limits_it(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 200000\n")
    assert host_memory(tmp_path).available_bytes == 500_000


def test_all_memory_is_that_of_the_group_where_there_is_a_limit(tmp_path: Path) -> None:
    hosts = host_memory(tmp_path / "no such folder")
    assert hosts.total_bytes >= hosts.available_bytes
    (tmp_path / "memory.max").write_text("max\n")
    assert host_memory(tmp_path).total_bytes == hosts.total_bytes
    (tmp_path / "memory.max").write_text("1000000\n")
    assert host_memory(tmp_path).total_bytes == 1_000_000


def test_utilisation_counts_nothing_of_a_host_besides_weights_and_pool() -> None:
    assert host_memory().overhead_bytes == 0
