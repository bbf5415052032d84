"""The pool's descriptor in the supervisor's keeping."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.processes import open_descriptors

from quire.errors import StartupError
from quire.kv_layout import CacheGroupLayout, KvPoolLayout
from quire.kv_pool import KvPool
from quire.pool_store import PoolStore, deposit_pool, fetch_pool

LAYOUT = KvPoolLayout(16, 10, 1, 77, bytes(32), (CacheGroupLayout(3, 2, 8, 2),))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PoolStore]:
    with closing(PoolStore(tmp_path / "pool.sock")) as opened:
        yield opened


def _deposit(store: PoolStore, content: int) -> None:
    with KvPool.create_memfd(LAYOUT) as pool:
        pool.segment(0)[0] = content
        deposit_pool(store.address, pool.fd)


def _content(store: PoolStore) -> int | None:
    descriptor = fetch_pool(store.address)
    if descriptor is None:
        return None
    with KvPool(descriptor) as pool:
        return pool.segment(0)[0]


def test_it_outlives_whoever_made_it_and_is_given_again_and_again(store: PoolStore) -> None:
    assert store.address.stat().st_mode & 0o777 == 0o600
    assert _content(store) is None
    _deposit(store, 5)
    assert _content(store) == 5
    assert _content(store) == 5


def test_the_latest_replaces_the_last(store: PoolStore) -> None:
    before = open_descriptors(os.getpid())
    for content in (1, 2, 3):
        _deposit(store, content)
    assert _content(store) == 3
    deposit_pool(store.address, None)
    assert _content(store) is None
    # Perhaps a connection that the store has yet to see closed.
    assert len(open_descriptors(os.getpid())) <= len(before) + 1


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW])
def test_memory_that_could_shrink_is_not_kept(store: PoolStore, seals: int) -> None:
    _deposit(store, 1)
    descriptor = os.memfd_create("mine", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    with pytest.raises(StartupError, match="does not keep"):
        deposit_pool(store.address, descriptor)
    os.close(descriptor)
    assert _content(store) == 1


def test_a_pipe_is_not_kept_and_a_file_is(store: PoolStore, tmp_path: Path) -> None:
    read, write = os.pipe()
    with pytest.raises(StartupError, match="does not keep"):
        deposit_pool(store.address, read)
    with (tmp_path / "file").open("w+b") as file:
        deposit_pool(store.address, file.fileno())
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("message", [b"X", b"\0", b"FF"])
def test_nonsense_is_answered_and_harms_nobody(store: PoolStore, message: bytes) -> None:
    _deposit(store, 1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(20)
        connection.connect(str(store.address))
        read, write = os.pipe()
        socket.send_fds(connection, [message], [read])
        os.close(read)
        assert connection.recv(10)
        # Nobody reads any more: what came with it was closed.
        with pytest.raises(BrokenPipeError):
            os.write(write, b"x")
        os.close(write)
    assert _content(store) == 1


def test_a_store_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"gone\.sock"):
        fetch_pool(tmp_path / "gone.sock")


def test_closing_leaves_nothing(tmp_path: Path) -> None:
    before, threads = open_descriptors(os.getpid()), threading.active_count()
    store = PoolStore(tmp_path / "pool.sock")
    _deposit(store, 1)
    store.close()
    assert not store.address.exists()
    assert threading.active_count() == threads
    assert open_descriptors(os.getpid()) == before
