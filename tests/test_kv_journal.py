"""Records of the journal: written whole or not at all."""

from __future__ import annotations

import random

import pytest

from quire.errors import KvPoolError
from quire.kv_journal import JournalRecord, KvJournal, record_bytes

BLOCK_SIZE = 4
TOKENS = bytes(range(16))
RECORD = JournalRecord(7, 3, b"h" * 32, b"k" * 32, TOKENS, 7)


def _make(num_blocks: int = 3) -> tuple[bytearray, KvJournal]:
    memory = bytearray(num_blocks * record_bytes(BLOCK_SIZE))
    return memory, KvJournal(memoryview(memory), BLOCK_SIZE)


def _write(journal: KvJournal, block_id: int, record: JournalRecord) -> None:
    journal.write(block_id, record.number, record.parent, record.hash, record.extra_key, record.tokens)


def test_what_is_written_is_read_by_another() -> None:
    memory, journal = _make()
    without_key = JournalRecord(8, 0, b"i" * 32, b"", TOKENS, 8)
    _write(journal, 0, RECORD)
    _write(journal, 2, without_key)
    other = KvJournal(memoryview(memory), BLOCK_SIZE)
    assert list(other.records()) == [(0, RECORD), (2, without_key)]
    assert [block in other for block in range(3)] == [True, False, True]


def test_a_block_is_free_once_it_is_cleared() -> None:
    _, journal = _make()
    _write(journal, 1, RECORD)
    _write(journal, 2, RECORD)
    journal.clear(1)
    assert [block_id for block_id, _ in journal.records()] == [2]
    journal.wipe()
    assert not any(block in journal for block in range(3))


def test_last_use_is_set_alone_and_nonsense_in_it_counts_as_none() -> None:
    memory, journal = _make()
    _write(journal, 1, RECORD)
    journal.set_last_use(1, 99)
    assert (found := journal.read(1)) is not None and found.last_use == 99
    end = memory.index((99).to_bytes(8, "little"))
    memory[end : end + 8] = b"\xff" * 8
    assert journal.read(1) == RECORD


def test_every_damaged_byte_is_noticed() -> None:
    memory, journal = _make(1)
    _write(journal, 0, RECORD)
    checked = len(memory) - 8 - (-(4 + 8 + 80 + 16) % 8)  # all but the last use and what rounds the record up
    for place in range(checked):
        memory[place] ^= 1
        assert journal.read(0) is None
        memory[place] ^= 1
    assert journal.read(0) == RECORD


@pytest.mark.parametrize("seed", range(20))
def test_a_torn_write_is_a_free_block(seed: int) -> None:
    """Whichever bytes of a record were written when its writer died, over nothing or over an older record."""
    draw = random.Random(seed)
    memory, journal = _make(1)
    old = JournalRecord(5, 0, b"o" * 32, b"", TOKENS[::-1], 5)
    _write(journal, 0, old)
    journal.clear(0)
    before = bytes(memory)
    _write(journal, 0, RECORD)
    after = bytes(memory)
    differing = [place for place in range(len(after)) if before[place] != after[place]]
    last_use = range(len(after) - 12, len(after) - 4)
    for _ in range(200):
        memory[:] = before
        for place in differing:
            if draw.random() < 0.5:
                memory[place] = after[place]
        found = journal.read(0)
        whole = all(memory[place] == after[place] for place in differing if place not in last_use)
        assert (found is not None) == whole


def test_a_journal_is_made_of_whole_records() -> None:
    with pytest.raises(KvPoolError, match="not made of records"):
        KvJournal(memoryview(bytearray(record_bytes(BLOCK_SIZE) + 1)), BLOCK_SIZE)
