"""Descriptors handed over a Unix socket."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import pytest
from support.processes import open_descriptors

from quire.handover import Handover, fetch, offered


def _answer_one(handover: Handover) -> threading.Thread:
    def answer() -> None:
        select.select([handover], [], [], 10)
        handover.serve_one()

    thread = threading.Thread(target=answer)
    thread.start()
    return thread


def test_descriptors_arrive_in_order(tmp_path: Path):
    reading, writing = os.pipe()
    with closing(Handover(tmp_path / "pipe.sock", [reading, writing])) as handover:
        assert handover.address.stat().st_mode & 0o777 == 0o600
        handover.serve_one()  # nobody is there: returns at once
        thread = _answer_one(handover)
        their_reading, their_writing = fetch(handover.address, 2)
        thread.join()
    assert not handover.address.exists()
    os.write(their_writing, b"x")
    assert os.read(reading, 1) == b"x"
    assert os.fstat(their_reading).st_ino == os.fstat(reading).st_ino
    for descriptor in (reading, writing, their_reading, their_writing):
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)


@pytest.mark.parametrize("wanted", [2, 4])
def test_another_number_of_descriptors_is_refused_and_closed(tmp_path: Path, wanted: int):
    descriptors = [os.eventfd(0) for _ in range(3)]
    with closing(Handover(tmp_path / "some.sock", descriptors)) as handover:
        before = open_descriptors()
        thread = _answer_one(handover)
        with pytest.raises(ConnectionError, match=f"not {wanted} descriptors"):
            fetch(handover.address, wanted)
        thread.join()
        assert open_descriptors() == before
    for descriptor in descriptors:
        os.close(descriptor)


def test_nobody_is_there(tmp_path: Path):
    with pytest.raises(OSError, match="No such file"):
        fetch(tmp_path / "nobody.sock", 1)


async def test_an_offer_leaves_nothing_behind():
    descriptor = os.eventfd(5)
    with offered("value", [descriptor]) as address:
        assert address.name == "value.sock"
        (theirs,) = await asyncio.to_thread(fetch, address, 1)
    assert os.eventfd_read(theirs) == 5
    assert not address.parent.exists()
    os.close(theirs)
    os.close(descriptor)


def _is_open(path: Path) -> bool:
    """Whether other users may enter all folders above it."""
    return path.exists() and all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)


OPEN_PYTHON = next(filter(lambda path: _is_open(Path(path)), (sys.executable, "/usr/bin/python3")), "")
STRANGER = """
import socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    message, descriptors, _, _ = socket.recv_fds(connection, 1, 4)
    print(message, descriptors)
"""


@pytest.mark.skipif(os.geteuid() != 0 or not OPEN_PYTHON, reason="needs a second user who can run Python")
def test_another_user_gets_nothing_even_where_the_modes_let_it_in():
    descriptor = os.eventfd(0)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with closing(Handover(Path(folder) / "open.sock", [descriptor])) as handover:
            handover.address.chmod(0o666)
            thread = _answer_one(handover)
            command = [OPEN_PYTHON, "-I", "-S", "-c", STRANGER, str(handover.address)]
            nobody = {"user": 65534, "group": 65534, "extra_groups": []}
            stranger = subprocess.run(command, **nobody, capture_output=True, timeout=60)
            thread.join()
    assert stranger.stdout.decode() == "b'' []\n", stranger.stderr.decode()
    os.close(descriptor)
