"""Rings: every message arrives whole and in order, whatever its size; what is not a ring is refused."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.processes import open_descriptors

from quire.errors import RingError
from quire.handover import Handover
from quire.ring import COUNTERS_OFFSET, RingReader, RingWriter, StepRings
from quire.rpc import MAX_MESSAGE_BYTES
from quire.step_counters import COUNTERS_BYTES, LAYERS_COMPUTED, PLANS_TAKEN, RESULTS_WRITTEN


@pytest.fixture
def rings() -> Iterator[StepRings]:
    with StepRings.create(64) as rings:
        yield rings


def _ends(rings: StepRings) -> tuple[RingWriter, RingReader]:
    return RingWriter(rings.plans), RingReader(rings.plans)


def _is_readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


def _wait(descriptor: int) -> None:
    assert select.select([descriptor], [], [], 30)[0], "nobody woke this side"


def test_messages_wrap_around_the_end(rings):
    writer, reader = _ends(rings)
    for number in range(50):  # 24 bytes each: 64 is not a multiple
        message = bytes([number]) * 20
        assert writer.send(message)
        assert reader.receive() == [message]


def test_several_messages_are_received_at_once_and_empty_ones_too(rings):
    writer, reader = _ends(rings)
    for message in (b"a", b"", b"bc"):
        assert writer.send(message)
    assert reader.receive() == [b"a", b"", b"bc"]
    assert reader.receive() == []


def test_the_two_directions_do_not_mix(rings):
    for ring, message in ((rings.plans, b"plan" * 10), (rings.results, b"result" * 8)):
        assert RingWriter(ring).send(message)
    assert RingReader(rings.plans).receive() == [b"plan" * 10]
    assert RingReader(rings.results).receive() == [b"result" * 8]


def test_the_reader_is_woken_by_a_message_and_sleeps_after_it(rings):
    writer, reader = _ends(rings)
    assert not _is_readable(reader.written_fd)
    writer.send(b"x")
    assert _is_readable(reader.written_fd)
    reader.receive()
    assert not _is_readable(reader.written_fd)


def test_counters_can_be_read_from_outside(rings):
    """As whoever watches a server does: through /proc/PID/fd, at the documented places."""
    for count, times in (
        (rings.counters.count_plan, 3),
        (rings.counters.count_layer, 2),
        (rings.counters.count_result, 1),
    ):
        for _ in range(times):
            count()
    words = os.pread(rings.descriptors[0], COUNTERS_BYTES, COUNTERS_OFFSET)
    assert [struct.unpack_from("<Q", words, at)[0] for at in (PLANS_TAKEN, LAYERS_COMPUTED, RESULTS_WRITTEN)] == [
        3,
        2,
        1,
    ]
    assert rings.counters.progress == 6
    assert rings.counters.layers_address % 8 == 0


def test_a_full_ring_holds_the_writer_back_until_the_reader_has_taken_a_quarter(rings):
    writer, reader = _ends(rings)
    assert writer.send(b"a" * 8)
    assert reader.receive() == [b"a" * 8]
    assert writer.send(b"b" * 48)  # 12 bytes were taken, 52 are written: full, as far as the writer knows
    assert not writer.send(b"c" * 10)
    assert not _is_readable(writer.freed_fd)
    assert not writer.resume()
    with pytest.raises(RingError, match="waits for room"):
        writer.send(b"d")
    assert reader.receive() == [b"b" * 48]
    assert _is_readable(writer.freed_fd)
    assert writer.resume()
    assert reader.receive() == [b"c" * 10]


def test_a_message_larger_than_the_ring_goes_in_pieces(rings):
    writer, reader = _ends(rings)
    message = bytes(range(256)) * 4
    received = []
    sent = writer.send(message)
    while not sent:
        received += reader.receive()
        _wait(writer.freed_fd)
        sent = writer.resume()
    assert received + reader.receive() == [message]


@given(
    capacity=st.integers(1, 70),
    messages=st.lists(st.binary(max_size=200), max_size=12),
    draw=st.randoms(use_true_random=False),
)
def test_any_messages_arrive_in_any_interleaving(capacity, messages, draw):
    """Both sides move in random order, and neither before it was woken."""
    with StepRings.create(capacity) as rings:
        writer, reader = _ends(rings)
        received, next_message, sent = [], 0, True
        while len(received) < len(messages):
            can_send = next_message < len(messages) if sent else _is_readable(writer.freed_fd)
            can_receive = _is_readable(reader.written_fd)
            assert can_send or can_receive, "both sides sleep"
            if can_send and (not can_receive or draw.random() < 0.5):
                if sent:
                    sent = writer.send(messages[next_message])
                    next_message += 1
                else:
                    sent = writer.resume()
            else:
                received += reader.receive()
        assert received == messages


def test_a_message_of_more_than_the_bound_is_refused(rings):
    with pytest.raises(RingError, match="larger than"):
        RingWriter(rings.plans).send(bytes(MAX_MESSAGE_BYTES + 1))


def test_a_peer_that_breaks_the_protocol_is_noticed(rings):
    rings.results.memory[:4] = struct.pack("<I", MAX_MESSAGE_BYTES + 1)
    os.eventfd_write(rings.results.written_fd, 4)
    with pytest.raises(RingError, match="announces a message"):
        RingReader(rings.results).receive()

    os.eventfd_write(rings.plans.written_fd, 65)
    with pytest.raises(RingError, match="more than there was room for"):
        RingReader(rings.plans).receive()

    os.eventfd_write(rings.plans.freed_fd, 1)
    with pytest.raises(RingError, match="more room than there is"):
        RingWriter(rings.plans).send(b"x" * 100)


def _header(magic: bytes = b"QUIRERNG", version: int = 2, capacity: int = 64) -> bytes:
    fields = struct.pack("<8sII", magic, version, capacity)
    return fields + struct.pack("<I", zlib.crc32(fields))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "not a pair of rings"),
        (_header(magic=b"QUIREKV\0"), "not a pair of rings"),
        (_header(version=9), "version 9"),
        (_header(capacity=65), "capacity of 65"),
        (_header(capacity=0), "capacity of 0"),
        (_header()[:12] + b"\x41" + _header()[13:], "checksum"),
        (_header(), "not sealed"),
    ],
)
def test_memory_that_is_no_pair_of_rings_is_refused_and_closed(header, message):
    memory = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.pwrite(memory, header, 0)
    os.ftruncate(memory, 4096 + 2 * 64)
    eventfds = [os.eventfd(0) for _ in range(4)]
    with pytest.raises(RingError, match=message):
        StepRings([memory, *eventfds])
    for descriptor in (memory, *eventfds):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_nothing_is_left_open_and_the_memory_cannot_shrink():
    before = open_descriptors()
    with StepRings.create() as rings:
        memory = rings.descriptors[0]
        with pytest.raises(PermissionError):
            os.ftruncate(memory, 4096)
        with pytest.raises(PermissionError):
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert open_descriptors() == before


def test_what_is_offered_elsewhere_is_not_taken_for_rings(tmp_path: Path):
    with pytest.raises(RingError, match=r"rings\.sock"):
        StepRings.attach(tmp_path / "rings.sock")


ECHO = """
import select, sys
from pathlib import Path
from quire.ring import COUNTERS_OFFSET, RingReader, RingWriter, StepRings

def wait(descriptor):
    assert select.select([descriptor], [], [], 30)[0]

with StepRings.attach(Path(sys.argv[1])) as rings:
    reader, writer = RingReader(rings.plans), RingWriter(rings.results)
    while True:
        wait(reader.written_fd)
        for message in reader.receive():
            sent = writer.send(message)
            while not sent:
                wait(writer.freed_fd)
                sent = writer.resume()
            if message == b"end":
                sys.exit()
"""


@pytest.mark.parametrize("capacity", [1000, 1 << 16])
def test_two_processes(tmp_path: Path, capacity: int):
    """Messages of all sizes, up to several times the ring's, there and back."""
    messages = [bytes([size % 251]) * size for size in (0, 1, 7, 900, 996, 1000, 1001, 5000, 70_000, 300_000, 3)]
    messages = [*messages * 5, b"end"]
    with StepRings.create(capacity) as rings, closing(Handover(tmp_path / "rings.sock", rings.descriptors)) as handover:
        child = subprocess.Popen([sys.executable, "-P", "-c", ECHO, str(handover.address)])
        _wait(handover.fileno())
        handover.serve_one()

        def write() -> None:
            writer = RingWriter(rings.plans)
            for message in messages:
                sent = writer.send(message)
                while not sent:
                    _wait(writer.freed_fd)
                    sent = writer.resume()

        writing = threading.Thread(target=write)
        writing.start()
        reader, received = RingReader(rings.results), []
        while len(received) < len(messages):
            _wait(reader.written_fd)
            received += reader.receive()
        writing.join()
        assert received == messages
        assert child.wait(30) == 0
