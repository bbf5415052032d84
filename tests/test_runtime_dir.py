"""Folders whose sockets can be bound."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import pytest

from quire import runtime_dir
from quire.errors import StartupError
from quire.runtime_dir import make_runtime_dir


def _check(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "executor-63.sock"))
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "executor-63.sock").unlink()
    folder.rmdir()


@pytest.mark.parametrize("length", [30, 73, 74, 200])
def test_a_socket_can_be_bound_whatever_tmpdir_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int):
    base = tempfile.mkdtemp(dir="/tmp")
    parent = base + "/" + "x" * max(length - len(base) - 1, 1)
    Path(parent).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", parent)
    folder = make_runtime_dir()
    try:
        assert folder.is_relative_to(base) == (length <= 74)
        _check(folder)
    finally:
        Path(parent).rmdir()
        Path(base).rmdir()


def test_what_to_do_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 200)
    monkeypatch.setattr(runtime_dir, "_MAX_SOCKET_PATH", 10)
    with pytest.raises(StartupError, match="Set TMPDIR to a shorter path") as caught:
        make_runtime_dir()
    assert caught.value.field == "TMPDIR"
