"""Packed weights that outlive who packed them."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from support.processes import open_descriptors

from quire.errors import StartupError
from quire.weight_store import WeightStore, fetch_or_pack

KEY, OTHER = b"k" * 32, b"o" * 32
DIGEST = b"d" * 32
SIZE = 10_000
TIMEOUT_S = 20.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WeightStore]:
    with closing(WeightStore(tmp_path / "weights.sock")) as opened:
        yield opened


def fill(content: bytes, digest: bytes = DIGEST):
    def pack(memory: mmap.mmap) -> bytes:
        memory[: len(content)] = content
        return digest

    return pack


def never(memory: mmap.mmap) -> bytes:
    raise AssertionError("packed although somebody else has")


def test_the_second_maps_what_the_first_packed(store: WeightStore) -> None:
    assert store.address.stat().st_mode & 0o777 == 0o600
    first, digest = fetch_or_pack(store.address, KEY, SIZE, fill(b"weights"), TIMEOUT_S)
    second, same = fetch_or_pack(store.address, KEY, SIZE, never, TIMEOUT_S)
    assert digest == same == DIGEST
    assert first[:8] == second[:8] == b"weights\0"


def test_nobody_can_write_to_what_is_kept(store: WeightStore) -> None:
    mapped, _ = fetch_or_pack(store.address, KEY, SIZE, fill(b"weights"), TIMEOUT_S)
    mapped[0] = 0  # a copy of the page, for this process alone
    again, _ = fetch_or_pack(store.address, KEY, SIZE, never, TIMEOUT_S)
    assert again[:7] == b"weights"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(str(store.address))
        connection.send(KEY)
        _, (descriptor,), _, _ = socket.recv_fds(connection, 100, 1)
    with pytest.raises(PermissionError):
        os.write(descriptor, b"x")
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    with pytest.raises(PermissionError):
        mmap.mmap(descriptor, SIZE)
    os.close(descriptor)


def test_who_asks_meanwhile_waits(store: WeightStore) -> None:
    packing, may_end = threading.Event(), threading.Event()

    def slow(memory: mmap.mmap) -> bytes:
        packing.set()
        assert may_end.wait(TIMEOUT_S)
        return fill(b"slow")(memory)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(fetch_or_pack, store.address, KEY, SIZE, slow, TIMEOUT_S)
        assert packing.wait(TIMEOUT_S)
        others = [pool.submit(fetch_or_pack, store.address, KEY, SIZE, never, TIMEOUT_S) for _ in range(3)]
        # Another model's weights need not wait.
        assert fetch_or_pack(store.address, OTHER, SIZE, fill(b"other"), TIMEOUT_S)[0][:5] == b"other"
        assert not any(other.done() for other in others)
        may_end.set()
        for future in (first, *others):
            assert future.result(TIMEOUT_S)[0][:4] == b"slow"


def test_if_the_packer_dies_the_next_packs(store: WeightStore) -> None:
    packing, may_die = threading.Event(), threading.Event()

    def dies(memory: mmap.mmap) -> bytes:
        packing.set()
        assert may_die.wait(TIMEOUT_S)
        raise RuntimeError("died")

    with ThreadPoolExecutor() as pool:
        first = pool.submit(fetch_or_pack, store.address, KEY, SIZE, dies, TIMEOUT_S)
        assert packing.wait(TIMEOUT_S)
        second = pool.submit(fetch_or_pack, store.address, KEY, SIZE, fill(b"second"), TIMEOUT_S)
        may_die.set()
        with pytest.raises(RuntimeError, match="died"):
            first.result(TIMEOUT_S)
        assert second.result(TIMEOUT_S)[0][:6] == b"second"


def test_an_error_while_packing_is_told_as_it_is(store: WeightStore) -> None:
    def fails(memory: mmap.mmap) -> bytes:
        view = memoryview(memory)
        raise StartupError(f"the first byte is {view[0]}")

    with pytest.raises(StartupError, match="the first byte is 0"):
        fetch_or_pack(store.address, KEY, SIZE, fails, TIMEOUT_S)


def test_only_the_latest_model_is_kept(store: WeightStore) -> None:
    before = open_descriptors(os.getpid())
    mapped = []
    for index in range(5):
        mapped.append(fetch_or_pack(store.address, bytes([index]) * 32, SIZE, fill(b"%d" % index), TIMEOUT_S)[0])
    assert [weights[:1] for weights in mapped] == [b"0", b"1", b"2", b"3", b"4"]
    fetch_or_pack(store.address, bytes(32), SIZE, fill(b"again"), TIMEOUT_S)
    del mapped
    # The one that is kept, and perhaps a connection that the store has yet to see closed.
    assert len(open_descriptors(os.getpid())) <= len(before) + 2


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_WRITE, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW])
def test_what_is_not_sealed_is_not_kept(store: WeightStore, seals: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(str(store.address))
        connection.send(KEY)
        assert connection.recv(100) == b"P"
        descriptor = os.memfd_create("mine", os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, SIZE)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        socket.send_fds(connection, [DIGEST], [descriptor])
        os.close(descriptor)
        assert fetch_or_pack(store.address, KEY, SIZE, fill(b"mine"), TIMEOUT_S)[0][:4] == b"mine"


@pytest.mark.parametrize("message", [b"", b"short"])
def test_nonsense_ends_the_connection_alone(store: WeightStore, message: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.connect(str(store.address))
        connection.send(message)
        assert connection.recv(100) == b""
    assert fetch_or_pack(store.address, KEY, SIZE, fill(b"fine"), TIMEOUT_S)[0][:4] == b"fine"


def test_another_size_under_the_same_key_is_refused(store: WeightStore) -> None:
    fetch_or_pack(store.address, KEY, SIZE, fill(b"weights"), TIMEOUT_S)
    with pytest.raises(StartupError, match="something else"):
        fetch_or_pack(store.address, KEY, SIZE + 1, never, TIMEOUT_S)


def test_a_store_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"gone\.sock"):
        fetch_or_pack(tmp_path / "gone.sock", KEY, SIZE, never, TIMEOUT_S)


def test_closing_leaves_nothing(tmp_path: Path) -> None:
    before, threads = open_descriptors(os.getpid()), threading.active_count()
    store = WeightStore(tmp_path / "weights.sock")
    mapped, _ = fetch_or_pack(store.address, KEY, SIZE, fill(b"weights"), TIMEOUT_S)
    store.close()
    assert mapped[:7] == b"weights"
    mapped.close()
    assert not store.address.exists()
    assert threading.active_count() == threads
    assert open_descriptors(os.getpid()) == before
