"""Pools in files: who may open them, what is replaced and what is not."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from quire import pool_file
from quire.errors import KvPoolError
from quire.kv_layout import CacheGroupLayout, KvPoolLayout
from quire.kv_pool import KvPool

LAYOUT = KvPoolLayout(16, 10, 1, 77, bytes(range(32)), (CacheGroupLayout(3, 2, 8, 2),))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pool"


def _open(path: Path) -> KvPool | None:
    descriptor = pool_file.open_unused(path, timeout_s=0)
    return None if descriptor is None else KvPool(descriptor)


def test_what_was_written_is_found_by_the_next(path: Path):
    with pool_file.create(path, LAYOUT) as first:
        first.segment(0)[7] = 7
    assert path.stat().st_mode & 0o777 == 0o600
    found = _open(path)
    assert found is not None
    with found:
        assert found.layout == LAYOUT
        assert found.segment(0)[7] == 7


def test_there_may_be_none(path: Path):
    assert _open(path) is None


def test_a_file_that_is_no_pool_is_refused_and_stays(tmp_path: Path):
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    for path in (notes, tmp_path):
        with pytest.raises(KvPoolError) as caught:
            pool_file.open_unused(path, timeout_s=0)
        assert caught.value.field == "kv_pool"
    assert notes.read_text() == "mine"


def test_what_others_may_have_written_is_refused(path: Path):
    pool_file.create(path, LAYOUT).close()
    for mode in (0o620, 0o604):
        path.chmod(mode)
        with pytest.raises(KvPoolError, match="mode 0600"):
            _open(path)
    path.chmod(0o600)
    assert _open(path) is not None


def test_a_full_disk_at_the_first_byte(path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(KvPoolError, match="No space left"):
        pool_file.create(path, LAYOUT)
    assert not path.exists()


def test_what_cannot_be_made_is_named(tmp_path: Path, path: Path):
    with pytest.raises(KvPoolError, match="cannot create"):
        pool_file.create(tmp_path / "no" / "folder", LAYOUT)
    with pool_file.create(path, LAYOUT), pytest.raises(KvPoolError, match="cannot create"):
        pool_file.create(path, LAYOUT)


@pytest.mark.parametrize("user", ["scheduler", "executor"])
def test_nobody_opens_what_another_still_has(path: Path, user: str):
    """Be it only an executor, which may be stopped in the middle of a step."""
    scheduler = pool_file.create(path, LAYOUT)
    executor = KvPool(os.dup(scheduler.fd))  # as one that is handed over
    (scheduler if user == "executor" else executor).close()
    with pytest.raises(KvPoolError, match="used by another server"):
        _open(path)
    (executor if user == "executor" else scheduler).close()
    assert _open(path) is not None


def test_a_mapping_alone_keeps_the_lock(path: Path):
    """As an executor's, which closes the descriptor and keeps what it has mapped."""
    with pool_file.create(path, LAYOUT) as pool:
        segment = pool.segment(0)
    with pytest.raises(KvPoolError, match="used by another server"):
        _open(path)
    segment.release()


def test_a_discarded_file_goes_whoever_maps_it(path: Path):
    with pool_file.create(path, LAYOUT) as first:
        first.discard()
        assert _open(path) is None
        assert not path.exists()
        with pool_file.create(path, LAYOUT) as second:
            first.segment(0)[0] = 9
            assert second.segment(0)[0] == 0, "who still writes the old one does no harm"


def test_what_a_maker_left_that_died_is_replaced(path: Path):
    path.touch()
    assert _open(path) is None
    assert not path.exists()


def test_a_file_of_another_size_is_refused(path: Path):
    pool_file.create(path, LAYOUT).close()
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(KvPoolError, match="its header says"):
        _open(path)


def test_a_file_that_does_not_fit_leaves_nothing(path: Path):
    with pytest.raises(KvPoolError, match="does not fit"):
        pool_file.create(path, replace(LAYOUT, num_blocks=2**31))
    assert not path.exists()


def test_is_at_follows_the_name(tmp_path: Path, path: Path):
    with pool_file.create(path, LAYOUT) as pool:
        assert pool_file.is_at(pool.fd, path)
        path.rename(tmp_path / "moved")
        assert not pool_file.is_at(pool.fd, path)
        path.touch()
        assert not pool_file.is_at(pool.fd, path)
        assert pool_file.is_at(pool.fd, tmp_path / "moved")
