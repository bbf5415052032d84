"""The pool's format, anonymous memory and the handover of its descriptor, and what a pool's content is worth."""

from __future__ import annotations

import mmap
import os
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from quire import kv_pool
from quire.errors import KvPoolError
from quire.handover import Handover
from quire.kv_journal import record_bytes
from quire.kv_layout import HEADER_BYTES, CacheGroupLayout, KvPoolHeader, KvPoolLayout, PoolState
from quire.kv_pool import KvPool

LAYOUT = KvPoolLayout(
    block_size=16,
    num_blocks=10,
    num_ranks=2,
    epoch=77,
    fingerprint=bytes(range(32)),
    groups=(CacheGroupLayout(num_layers=3, num_kv_heads=2, head_dim=8, element_bytes=2),),
)

HEADER = KvPoolHeader(LAYOUT, PoolState.OPEN, bytes(16))


def test_sizes():
    assert LAYOUT.groups[0].bytes_per_token == 2 * 3 * 2 * 8 * 2
    assert LAYOUT.block_bytes == 16 * 192
    assert LAYOUT.segment_bytes % mmap.PAGESIZE == 0
    assert LAYOUT.segment_bytes >= 10 * LAYOUT.block_bytes
    assert LAYOUT.journal_bytes == 10 * record_bytes(16)
    assert LAYOUT.data_offset % mmap.PAGESIZE == 0
    assert LAYOUT.data_offset >= HEADER_BYTES + LAYOUT.journal_bytes
    assert LAYOUT.total_bytes == LAYOUT.data_offset + 2 * LAYOUT.segment_bytes


def test_scales_count():
    group = CacheGroupLayout(num_layers=30, num_kv_heads=3, head_dim=64, element_bytes=1, scale_bytes=4)
    assert group.bytes_per_token == 2 * 30 * 3 * (64 + 4)
    with pytest.raises(KvPoolError, match="boundaries"):
        CacheGroupLayout(num_layers=1, num_kv_heads=1, head_dim=1, element_bytes=1, scale_bytes=4)


def test_the_header_says_everything():
    int8 = replace(LAYOUT, groups=(CacheGroupLayout(3, 2, 8, 1, 4), CacheGroupLayout(3, 2, 8, 2)))
    for header in (
        KvPoolHeader(LAYOUT, PoolState.OPEN, bytes(range(16))),
        KvPoolHeader(int8, PoolState.CLEAN, bytes(16)),
        KvPoolHeader(LAYOUT, PoolState.DISCARDED, bytes(16)),
    ):
        assert KvPoolHeader.unpack(header.pack()) == header


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: b"\0" * HEADER_BYTES, "not a KV pool"),
        (lambda header: header[:100], "100 bytes"),
        (lambda header: header[:8] + b"\x63" + header[9:], "layout version 99"),
        (lambda header: header[:40] + b"\xff" + header[41:], "checksum"),
        (lambda header: header[:84] + b"\xff\xff\xff\xff" + header[88:], "checksum"),
    ],
)
def test_a_damaged_header_is_refused(change, message):
    with pytest.raises(KvPoolError, match=message):
        KvPoolHeader.unpack(change(HEADER.pack()))


def test_a_state_of_a_later_program_is_refused():
    fields = HEADER.pack()[:80] + (9).to_bytes(4, "little") + HEADER.pack()[84:108]
    header = (fields + zlib.crc32(fields).to_bytes(4, "little")).ljust(HEADER_BYTES, b"\0")
    with pytest.raises(KvPoolError, match="state 9"):
        KvPoolHeader.unpack(header)


@pytest.mark.parametrize("changes", [{"num_blocks": 0}, {"block_size": 0}, {"groups": ()}, {"fingerprint": b"x"}])
def test_an_impossible_layout_is_refused(changes):
    with pytest.raises(KvPoolError):
        replace(LAYOUT, **changes)


def test_two_mappings_are_one_memory():
    with KvPool.create_memfd(LAYOUT) as made, KvPool(os.dup(made.fd)) as attached:
        assert attached.layout == LAYOUT
        made.segment(1)[5] = 200
        assert attached.segment(1)[5] == 200
        assert attached.segment(0)[5] == 0
        assert len(made.segment(0)) == 10 * LAYOUT.block_bytes
        with pytest.raises(KvPoolError, match="no rank 2"):
            made.segment(2)


def test_journal_and_segments_do_not_overlap():
    with KvPool.create_memfd(LAYOUT) as made:
        for rank in (0, 1):
            made.segment(rank)[:] = bytes([255]) * len(made.segment(rank))
        assert made.header == KvPoolHeader.unpack(os.pread(made.fd, HEADER_BYTES, 0))
        assert not any(block in made.journal() for block in range(10))
        made.journal().write(9, 1, 0, bytes(32), b"", bytes(64))
        assert set(made.segment(0)) == {255}


def test_a_memfd_is_handed_over_and_cannot_shrink(tmp_path: Path):
    with KvPool.create_memfd(LAYOUT) as made:
        handover = Handover(tmp_path / "kv.sock", [made.fd])

        def answer() -> None:
            import select

            select.select([handover], [], [], 10)
            handover.serve_one()

        thread = threading.Thread(target=answer)
        thread.start()
        with KvPool.attach_handover(tmp_path / "kv.sock") as attached:
            attached.segment(0)[0] = 9
            assert made.segment(0)[0] == 9
            with pytest.raises(PermissionError):
                os.ftruncate(attached.fd, 4096)
        thread.join()
        handover.close()


def test_what_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(KvPoolError, match=r"kv\.sock"):
        KvPool.attach_handover(tmp_path / "kv.sock", timeout_s=1)


def test_content_is_good_for_one_boot_unless_it_is_clean(monkeypatch):
    with KvPool.create_memfd(LAYOUT) as made:
        made.check_content()
        with monkeypatch.context() as later:
            later.setattr(kv_pool, "boot_id", lambda: bytes(16))
            with pytest.raises(KvPoolError, match="in use when the machine went down"):
                made.check_content()
        made.mark(PoolState.CLEAN)
        monkeypatch.setattr(kv_pool, "boot_id", lambda: bytes(16))
        made.check_content()
        # Opened in another boot, it belongs to that.
        made.mark(PoolState.OPEN)
        assert made.header.boot_id == bytes(16)
        made.check_content()


def test_a_discarded_pool_stays_discarded():
    with KvPool.create_memfd(LAYOUT) as made, KvPool(os.dup(made.fd)) as other:
        made.discard()
        made.mark(PoolState.CLEAN)
        with KvPool(os.dup(made.fd)) as found, pytest.raises(KvPoolError, match="discarded"):
            found.check_content()
        assert other.layout == LAYOUT
