"""The pool's format, its two homes and the handover of its descriptor."""

from __future__ import annotations

import mmap
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from quire.errors import KvPoolError
from quire.handover import Handover
from quire.kv_layout import HEADER_BYTES, CacheGroupLayout, KvPoolLayout
from quire.kv_pool import KvPool

LAYOUT = KvPoolLayout(
    block_size=16,
    num_blocks=10,
    num_ranks=2,
    epoch=77,
    fingerprint=bytes(range(32)),
    groups=(CacheGroupLayout(num_layers=3, num_kv_heads=2, head_dim=8, element_bytes=2),),
)


def test_sizes():
    assert LAYOUT.groups[0].bytes_per_token == 2 * 3 * 2 * 8 * 2
    assert LAYOUT.block_bytes == 16 * 192
    assert LAYOUT.segment_bytes % mmap.PAGESIZE == 0
    assert LAYOUT.segment_bytes >= 10 * LAYOUT.block_bytes
    assert LAYOUT.total_bytes == HEADER_BYTES + 2 * LAYOUT.segment_bytes


def test_scales_count():
    group = CacheGroupLayout(num_layers=30, num_kv_heads=3, head_dim=64, element_bytes=1, scale_bytes=4)
    assert group.bytes_per_token == 2 * 30 * 3 * (64 + 4)
    with pytest.raises(KvPoolError, match="boundaries"):
        CacheGroupLayout(num_layers=1, num_kv_heads=1, head_dim=1, element_bytes=1, scale_bytes=4)


def test_the_header_says_everything():
    assert KvPoolLayout.unpack(LAYOUT.pack()) == LAYOUT
    int8 = replace(LAYOUT, groups=(CacheGroupLayout(3, 2, 8, 1, 4), CacheGroupLayout(3, 2, 8, 2)))
    assert KvPoolLayout.unpack(int8.pack()) == int8


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
        KvPoolLayout.unpack(change(LAYOUT.pack()))


@pytest.mark.parametrize("changes", [{"num_blocks": 0}, {"block_size": 0}, {"groups": ()}, {"fingerprint": b"x"}])
def test_an_impossible_layout_is_refused(changes):
    with pytest.raises(KvPoolError):
        replace(LAYOUT, **changes)


def test_two_mappings_are_one_memory(tmp_path: Path):
    path = tmp_path / "pool"
    with KvPool.create_file(path, LAYOUT) as made, KvPool.attach_path(path) as attached:
        assert attached.layout == LAYOUT
        made.segment(1)[5] = 200
        assert attached.segment(1)[5] == 200
        assert attached.segment(0)[5] == 0
        assert len(made.segment(0)) == 10 * LAYOUT.block_bytes
        with pytest.raises(KvPoolError, match="no rank 2"):
            made.segment(2)


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
    with pytest.raises(KvPoolError, match="pool"):
        KvPool.attach_path(tmp_path / "pool")
    with pytest.raises(KvPoolError, match=r"kv\.sock"):
        KvPool.attach_handover(tmp_path / "kv.sock", timeout_s=1)
    with pytest.raises(KvPoolError, match="cannot create"):
        KvPool.create_file(tmp_path / "no" / "folder", LAYOUT)


def test_a_file_that_is_no_pool_is_not_overwritten(tmp_path: Path):
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    for path in (notes, tmp_path):
        with pytest.raises(KvPoolError) as caught:
            KvPool.create_file(path, LAYOUT)
        assert caught.value.field == "kv_pool"
    assert notes.read_text() == "mine"


def test_a_pool_in_use_is_not_replaced(tmp_path: Path):
    path = tmp_path / "pool"
    with KvPool.create_file(path, LAYOUT) as first:
        with pytest.raises(KvPoolError, match="used by another server"):
            KvPool.create_file(path, LAYOUT)
        first.segment(0)[0] = 1
    with KvPool.create_file(path, LAYOUT) as second:
        assert second.segment(0)[0] == 0


def test_only_its_own_file_is_removed(tmp_path: Path):
    path = tmp_path / "pool"
    with KvPool.create_file(path, LAYOUT) as first:
        path.rename(tmp_path / "moved")
        path.write_text("another's")
        first.remove(path)
        assert path.exists()
        first.remove(tmp_path / "moved")
        assert not (tmp_path / "moved").exists()
        first.remove(tmp_path / "moved")


def test_a_file_of_another_size_is_refused(tmp_path: Path):
    path = tmp_path / "pool"
    KvPool.create_file(path, LAYOUT).close()
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(KvPoolError, match="its header says"):
        KvPool.attach_path(path)


def test_a_file_that_does_not_fit_leaves_nothing(tmp_path: Path):
    with pytest.raises(KvPoolError, match="does not fit"):
        KvPool.create_file(tmp_path / "pool", replace(LAYOUT, num_blocks=2**31))
    assert not (tmp_path / "pool").exists()
