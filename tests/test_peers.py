"""Processes that took descriptors: they can be ended, and it is known when they have."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quire import peers as peers_module
from quire.handover import offered
from quire.peers import Peers

# Takes what is offered at a socket and stays.
_TAKER = """
import pathlib, sys
from quire.handover import fetch
print(len(fetch(pathlib.Path(sys.argv[1]), 1)), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def value() -> Iterator[int]:
    descriptor = os.eventfd(0)
    yield descriptor
    os.close(descriptor)


@pytest.fixture(params=["peer pidfd", "credentials"])
def kernel(request, monkeypatch) -> None:
    if request.param == "credentials":  # an option that no kernel has
        monkeypatch.setattr(peers_module, "_SO_PEERPIDFD", 9999)


def _num_pidfds() -> int:
    return sum("pidfd" in str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())


async def _take(address: Path) -> asyncio.subprocess.Process:
    taker = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", _TAKER, str(address), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert await asyncio.wait_for(taker.stdout.readline(), 60) == b"1\n"
    return taker


@pytest.mark.parametrize("stopped", [False, True])
async def test_whoever_took_them_is_ended(kernel, value, stopped):
    peers, before = Peers(), _num_pidfds()
    with offered("value", [value], peers) as address:
        taker = await _take(address)
    if stopped:
        taker.send_signal(signal.SIGSTOP)
    assert await peers.end(60)
    assert await taker.wait() == -signal.SIGKILL
    assert await peers.end(60), "it has ended already"
    assert _num_pidfds() == before + 1
    peers.close()
    assert _num_pidfds() == before


async def test_whoever_is_let_go_lives_on(value):
    peers = Peers()
    with offered("value", [value], peers) as address:
        taker = await _take(address)
    peers.close()
    assert await peers.end(60)
    assert taker.returncode is None
    taker.stdin.close()
    assert await taker.wait() == 0


async def test_nobody_took_them():
    assert await Peers().end(0)


def _left_connection(tmp_path: Path) -> socket.socket:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(tmp_path / "socket"))
            return listener.accept()[0]


async def test_an_id_of_a_process_that_has_left_is_not_trusted(tmp_path, monkeypatch):
    """Ours lives, but whoever connected is gone: without the check this would end the test."""
    monkeypatch.setattr(peers_module, "_SO_PEERPIDFD", 9999)
    peers = Peers()
    with _left_connection(tmp_path) as connection:
        peers.add(connection)
    assert await peers.end(60)


async def test_the_death_of_a_stranger_is_not_proved(monkeypatch):
    """It is in a process namespace that we do not see."""
    peers = Peers()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setattr(peers_module, "_SO_PEERPIDFD", 9999)
        monkeypatch.setattr(peers_module.PeerCredentials, "of", lambda _: peers_module.PeerCredentials(0, 0, 0))
        peers.add(ours)
    assert not await peers.end(60)


async def test_a_death_that_does_not_come_in_time(value, monkeypatch):
    peers = Peers()
    with offered("value", [value], peers) as address:
        taker = await _take(address)
    with monkeypatch.context() as patch:
        patch.setattr(signal, "pidfd_send_signal", lambda *_: None)
        assert not await peers.end(0.1)
    assert await peers.end(60)
    await taker.wait()
    peers.close()
