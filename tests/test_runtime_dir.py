"""Folders whose sockets can be bound."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from quire import runtime_dir
from quire.errors import StartupError
from quire.runtime_dir import await_runtime_dir, choose_runtime_dir, create_runtime_dir, make_runtime_dir


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


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(tempfile, "tempdir", tempfile.mkdtemp(dir="/tmp"))
    path = choose_runtime_dir()
    assert not path.exists()
    yield path
    path.rmdir()
    path.parent.rmdir()


def test_it_is_waited_for(chosen: Path):
    maker = threading.Timer(0.05, create_runtime_dir, [chosen])
    maker.start()
    await_runtime_dir(chosen, lambda: True)
    assert chosen.stat().st_mode & 0o777 == 0o700
    maker.join()


def test_nobody_waits_for_a_dead_maker(chosen: Path):
    await_runtime_dir(chosen, lambda: False)
    create_runtime_dir(chosen)


def test_a_folder_that_others_can_write_is_not_ours(chosen: Path, monkeypatch: pytest.MonkeyPatch):
    chosen.mkdir()
    monkeypatch.setattr(runtime_dir, "_MAKING_TIMEOUT_S", 0.05)
    with pytest.raises(StartupError, match="was not made"):
        await_runtime_dir(chosen, lambda: True)
    with pytest.raises(StartupError, match="File exists"):
        create_runtime_dir(chosen)
