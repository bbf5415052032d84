"""Which pool a scheduler gets: the last one's, if that can be trusted and fits, or a new one."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from quire import kv_pool
from quire.config import SchedulerSettings
from quire.errors import KvPoolError
from quire.internal.v1 import executor_pb2
from quire.kv_layout import PoolState
from quire.kv_pool import KvPool
from quire.peers import Peers
from quire.pool_store import PoolStore, fetch_pool
from quire.scheduler.pool_home import PoolHome, open_pool

MIB = 2**20
MARK = 200


def _executor(**changes: object) -> executor_pb2.ExecutorDescription:
    """Blocks of 16 KiB."""
    group = executor_pb2.CacheGroup(num_layers=1, num_kv_heads=2, head_dim=128, element_bytes=2)
    given = {
        "pool_home": executor_pb2.POOL_HOME_HOST,
        "default_pool_share": 0.4,
        "num_ranks": 1,
        "cache_groups": [group],
        "max_model_len": 256,
        "available_bytes": 64 * MIB,
        "fingerprint": b"f" * 32,
    }
    return executor_pb2.ExecutorDescription(**{**given, **changes})


class Host:
    """A supervisor's store or a file, or both; schedulers open the pool one after the other."""

    def __init__(self, **settings: object) -> None:
        self._settings = settings

    @contextlib.contextmanager
    def scheduler(self, executor: executor_pb2.ExecutorDescription | None = None, **more: object) -> Iterator[PoolHome]:
        given = {"listen": "unix:/nowhere", "executors": ["unix:/nowhere"], "kv_cache_memory": "4MiB"}
        settings = SchedulerSettings.load({**given, **self._settings, **more})
        with contextlib.ExitStack() as cleanup:
            yield open_pool(settings, [executor or _executor()], cleanup)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PoolStore]:
    with closing(PoolStore(tmp_path / "pool.sock")) as opened:
        yield opened


@pytest.fixture(params=["store", "file", "both"])
def host(request: pytest.FixtureRequest, store: PoolStore, tmp_path: Path) -> Host:
    settings = {"pool_store": store.address, "kv_pool": tmp_path / "pool"}
    if request.param != "both":
        del settings["kv_pool" if request.param == "store" else "pool_store"]
    return Host(**settings)


def _mark(home: PoolHome) -> int:
    """Writes into a pool; returns its epoch. Nothing keeps the pool mapped afterwards."""
    with home.pool.segment(0) as segment:
        segment[0] = MARK
    return home.layout.epoch


def _is_marked(home: PoolHome) -> bool:
    with home.pool.segment(0) as segment:
        return segment[0] == MARK


def test_the_next_scheduler_gets_the_same_pool(host: Host) -> None:
    with host.scheduler() as home:
        epoch = _mark(home)
        assert home.layout.num_blocks == 256
        assert home.journal is not None
        home.journal.write(200, 1, 0, bytes(32), b"", bytes(64))
        del home
    for _ in range(2):
        with host.scheduler() as home:
            assert _is_marked(home)
            assert home.layout.epoch == epoch
            assert home.journal is not None and 200 in home.journal
            del home


def test_of_any_size_if_none_is_asked_for(host: Host) -> None:
    with host.scheduler() as home:
        _mark(home)
        del home
    with host.scheduler(_executor(available_bytes=0), kv_cache_memory=None) as home:
        assert _is_marked(home), "what is free says nothing: the pool has its memory"
        assert home.layout.num_blocks == 256


@pytest.mark.parametrize(
    ("executor", "settings", "reason"),
    [
        (_executor(fingerprint=b"g" * 32), {}, "another model"),
        (_executor(), {"block_size": 32}, "another model, KV format or block size"),
        (_executor(), {"kv_cache_memory": "8MiB"}, "--kv-cache-memory is 0.01 GiB"),
        (_executor(max_model_len=8192), {"kv_cache_memory": None}, "less than one request"),
    ],
)
def test_what_does_not_fit_is_replaced(
    host: Host,
    executor: executor_pb2.ExecutorDescription,
    settings: dict[str, object],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with host.scheduler() as home:
        epoch = _mark(home)
        del home
    for _ in range(2):
        with host.scheduler(executor, **settings) as home:
            assert not _is_marked(home)
            assert home.layout.epoch != epoch
            del home
    assert reason in caplog.text


def _damage_header(pool: KvPool) -> None:
    os.pwrite(pool.fd, b"\xff", 40)


def _discard(pool: KvPool) -> None:
    pool.discard()


@pytest.mark.parametrize(("harm", "reason"), [(_damage_header, "checksum"), (_discard, "")])
def test_what_cannot_be_trusted_is_replaced(
    host: Host, harm: Callable[[KvPool], None], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with host.scheduler() as home:
        _mark(home)
        harmed = os.dup(home.pool.fd)
        del home
    with KvPool(harmed) as pool:
        harm(pool)
    del pool
    with host.scheduler() as home:
        assert not _is_marked(home)
    assert reason in caplog.text


def test_without_a_prefix_cache_the_journal_is_wiped(host: Host) -> None:
    with host.scheduler() as home:
        assert home.journal is not None
        home.journal.write(3, 1, 0, bytes(32), b"", bytes(64))
        del home
    with host.scheduler(enable_prefix_caching=False) as home:
        assert home.journal is None
        del home
    with host.scheduler() as home:
        assert home.journal is not None and 3 not in home.journal


def test_a_file_is_clean_after_an_orderly_end_and_only_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(kv_pool=tmp_path / "pool")
    with host.scheduler() as home:
        _mark(home)
        assert home.pool.header.state is PoolState.OPEN
        in_use = (tmp_path / "pool").read_bytes()[:4096]
        del home
    monkeypatch.setattr(kv_pool, "boot_id", lambda: bytes(16))
    with host.scheduler() as home:
        assert _is_marked(home), "the machine went down after an orderly end"
        del home
    # As it was when it was in use, in the boot before.
    with (tmp_path / "pool").open("r+b") as file:
        file.write(in_use)
    with host.scheduler() as home:
        assert not _is_marked(home)


def test_a_store_follows_the_file_of_the_name(store: PoolStore, tmp_path: Path) -> None:
    path = tmp_path / "pool"
    host = Host(pool_store=store.address, kv_pool=path)
    with host.scheduler() as home:
        _mark(home)
        del home
    path.unlink()
    with host.scheduler() as home:
        assert not _is_marked(home)
        _mark(home)
        del home
    kept = fetch_pool(store.address)
    assert kept is not None
    assert os.path.samestat(os.fstat(kept), path.stat())
    os.close(kept)


def test_another_server_is_kept_out_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire.scheduler.pool_home._LOCK_TIMEOUT_S", 0)
    host = Host(kv_pool=tmp_path / "pool")
    with host.scheduler(), pytest.raises(KvPoolError, match="used by another server"), host.scheduler():
        pass


def test_a_full_disk_is_said_as_such_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    host = Host(kv_pool=tmp_path / "pool")
    with pytest.raises(KvPoolError, match="does not fit at") as caught, host.scheduler():
        pass
    assert caught.value.field == "kv_cache_memory"
    assert not (tmp_path / "pool").exists()


def _provider(**changes: object) -> executor_pb2.ExecutorDescription:
    return _executor(pool_home=executor_pb2.POOL_HOME_EXECUTOR, **changes)


def test_of_a_pool_that_the_executor_provides_the_journal_is_here(store: PoolStore) -> None:
    host = Host(pool_store=store.address)
    with host.scheduler(_provider()) as home:
        assert home.is_with_executor and home.num_usable == home.layout.num_blocks == 256
        assert os.fstat(home.pool.fd).st_size < MIB
        assert home.journal is not None
        home.journal.write(200, 1, 0, bytes(32), b"", bytes(64))
        epoch = home.layout.epoch
        del home
    with host.scheduler(_provider(available_bytes=0)) as home:
        assert home.layout.epoch == epoch
        assert home.journal is not None and 200 in home.journal
        del home
    with host.scheduler() as home:
        assert not home.is_with_executor and home.layout.epoch != epoch
        del home


def test_a_pool_that_the_executor_provides_has_no_file(tmp_path: Path) -> None:
    with pytest.raises(KvPoolError, match="these executors provide the KV pool") as caught:
        Host(kv_pool=tmp_path / "pool").scheduler(_provider()).__enter__()
    assert caught.value.field == "kv_pool"
    assert not (tmp_path / "pool").exists()


async def test_an_executor_that_can_be_ended_gets_the_memory_of_the_one_before_it() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with Host().scheduler(_provider()) as home, ours, theirs, closing(Peers()) as peers:
        with home.offered(peers) as request:
            assert request.executor_memory.is_new
        peers.add(ours)
        with home.offered(peers) as request:
            assert request.HasField("executor_memory") and not request.executor_memory.is_new
            assert (request.epoch, request.num_blocks) == (home.layout.epoch, 256)
