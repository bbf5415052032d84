"""What executors get from the holder: real descriptors of a stand-in's memory, over a real socket."""

from __future__ import annotations

import ctypes
import gc
import os
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
from support.fake_cuda import GRANULARITY
from support.memory_user import memory_user
from support.processes import open_descriptors

from quire.cuda_driver import CudaDriver, CudaError
from quire.device_pool.client import HolderClient, NoHolderError, wake
from quire.device_pool.memory import MappedMemory
from quire.device_pool.protocol import Outcome, PoolKey, Reply, Request, Verb
from quire.errors import KvPoolError

SIZE = 3 * GRANULARITY - 100


def _bytes(memory: MappedMemory) -> np.ndarray:
    """As torch takes them, on a device whose memory is the host's."""
    found = memory.__cuda_array_interface__
    assert (found["typestr"], found["strides"], found["version"]) == ("|u1", None, 3)
    pointer, read_only = found["data"]
    assert not read_only
    return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_uint8)), found["shape"])


def _mapped() -> int:
    """Mappings of device memory in this process."""
    gc.collect()
    return Path("/proc/self/maps").read_text().count("memfd:fake-device-memory")


def test_a_pool_is_zeros_first_and_then_what_was_written(client: HolderClient) -> None:
    memory, has_content = client.attach(7, SIZE)
    assert not has_content
    assert _bytes(memory).shape == (SIZE,) and not _bytes(memory).any()
    _bytes(memory)[:] = 9
    del memory
    memory, has_content = client.attach(7, SIZE)
    assert has_content and (_bytes(memory) == 9).all()


def test_it_outlives_a_killed_executor(library: Path, address: Path, client: HolderClient) -> None:
    with memory_user(library, address, 7, SIZE, 5) as process:
        process.kill()
        process.wait()
    memory, has_content = client.attach(7, SIZE)
    assert has_content and (_bytes(memory) == 5).all()


def test_two_executors_have_the_same_memory_while_one_succeeds_the_other(client: HolderClient) -> None:
    old, _ = client.attach(7, SIZE)
    new, has_content = client.attach(7, SIZE)
    assert has_content and new.address != old.address
    _bytes(old)[0] = 1
    assert _bytes(new)[0] == 1


def test_mappings_end_with_their_users(client: HolderClient) -> None:
    before, descriptors = _mapped(), len(open_descriptors())
    memory, _ = client.attach(7, SIZE)
    assert _mapped() == before + 1
    del memory
    for _ in range(3):
        client.attach(7, SIZE)
    assert _mapped() == before
    # The holder's own handle.
    assert len(open_descriptors()) <= descriptors + 2


@pytest.mark.parametrize("epoch", [7, 8])
def test_other_memory_replaces_what_is_held(client: HolderClient, epoch: int) -> None:
    """Who had it mapped keeps it, and harms nobody."""
    old, _ = client.attach(7, SIZE)
    new, has_content = client.attach(epoch, SIZE, is_new=True)
    assert not has_content
    _bytes(old)[:] = 1
    assert not _bytes(new).any()
    _, has_content = client.attach(epoch, SIZE)
    assert has_content


def test_what_is_held_is_counted(client: HolderClient, address: Path, driver: CudaDriver) -> None:
    assert client.held_bytes() == 0
    client.attach(7, SIZE)
    assert client.held_bytes() == 3 * GRANULARITY
    assert HolderClient(address, driver, 1).held_bytes() == 0


def test_a_pool_of_the_same_epoch_that_is_another(client: HolderClient, address: Path, driver: CudaDriver) -> None:
    client.attach(7, SIZE)
    with pytest.raises(KvPoolError, match=f"the KV pool of epoch 7 has {SIZE} bytes, not 5"):
        client.attach(7, 5)
    with pytest.raises(KvPoolError, match=r"the KV pool of epoch 7 is on device 4141.*, not 4242"):
        HolderClient(address, driver, 1).attach(7, SIZE)


def test_a_pool_that_does_not_fit(client: HolderClient) -> None:
    client.attach(7, SIZE)
    with pytest.raises(KvPoolError, match=r"does not fit the device's memory: .*lower --kv-cache-memory") as caught:
        client.attach(8, 1 << 40)
    assert caught.value.field == "kv_cache_memory"
    assert client.held_bytes() == 0


def test_a_pool_whose_maker_dies_before_it_is_cleared_is_given_to_nobody(client: HolderClient, address: Path) -> None:
    reply, descriptor = _ask(address, Request(Verb.MAKE, PoolKey(7, SIZE, b"A" * 16)).pack())
    assert reply == Reply(Outcome.GIVEN, 3 * GRANULARITY) and descriptor is not None
    os.close(descriptor)
    assert _ask(address, Request(Verb.FETCH, PoolKey(7, SIZE, b"A" * 16)).pack()) == (Reply(Outcome.NONE), None)
    memory, has_content = client.attach(7, SIZE)
    assert not has_content and not _bytes(memory).any()


def test_what_cannot_be_cleared_is_dropped(client: HolderClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise CudaError("the device fell off the bus", 719)

    with monkeypatch.context() as patch:
        patch.setattr(MappedMemory, "clear", fail)
        with pytest.raises(CudaError, match="fell off"):
            client.attach(7, SIZE)
    assert client.held_bytes() == 0


@pytest.mark.parametrize(
    "message", [b"", b"F", b"?" + bytes(32), b"M" + bytes(33), b"M" + struct.pack("<QQ", 1, 5) + b"Z" * 16]
)
def test_nonsense_is_refused_and_harms_nobody(client: HolderClient, address: Path, message: bytes) -> None:
    client.attach(7, SIZE)
    if message:
        reply, descriptor = _ask(address, message)
        assert reply.outcome is Outcome.REFUSED and reply.reason and descriptor is None
    else:
        wake(address)
    assert client.attach(8, SIZE)


def test_where_memory_cannot_be_exported(
    client: HolderClient, address: Path, driver: CudaDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CUDA_EXPORT", "0")
    with pytest.raises(NoHolderError, match="this platform cannot export device memory"):
        HolderClient(address, driver, 0)
    monkeypatch.setenv("FAKE_CUDA_EXPORT", "fails")
    with pytest.raises(NoHolderError, match=r"cannot export device memory: cuMemExport.*CUDA_ERROR_NOT_PERMITTED"):
        client.attach(7, SIZE)
    assert client.held_bytes() == 0


def test_without_a_holder(driver: CudaDriver, tmp_path: Path) -> None:
    wake(tmp_path / "none.sock")
    with pytest.raises(NoHolderError, match=r"none\.sock cannot be reached"):
        HolderClient(tmp_path / "none.sock", driver, 0).attach(7, SIZE)


def _ask(address: Path, message: bytes) -> tuple[Reply, int | None]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(30)
        connection.connect(str(address))
        connection.send(message)
        answer, descriptors, _, _ = socket.recv_fds(connection, 4096, 1)
    return Reply.unpack(answer), descriptors[0] if descriptors else None
