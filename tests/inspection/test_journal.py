"""What the inspector says of journals, sound ones and ones that were damaged in every way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from support.made_pools import BLOCK_SIZE, NUM_BLOCKS, SALT, make_contents, write

from quire.inspect.findings import Kind
from quire.inspect.journal import RecordState, check_journal
from quire.kv_journal import KvJournal, chain_hash, record_bytes
from quire.scheduler.prefix_journal import PrefixJournal

FIRST, SECOND, THIRD = 7, 3, 5  # blocks of the chain that three others continue
SALTED_END = 21


@pytest.fixture
def memory() -> bytearray:
    made = bytearray(NUM_BLOCKS * record_bytes(BLOCK_SIZE))
    for content in make_contents():
        write(_journal(made), content)
    return made


def _journal(memory: bytearray) -> KvJournal:
    return KvJournal(memoryview(memory), BLOCK_SIZE)


def test_a_sound_journal_is_counted(memory):
    report = check_journal(bytes(memory), BLOCK_SIZE)
    assert report.findings == []
    assert report.counts == {"empty": NUM_BLOCKS - 8, "known": 8, "unreachable": 0, "damaged": 0}
    assert (report.num_prompts, report.num_chains, report.longest_chain) == (2, 4, 4)
    assert report.sharing == {3: 1}, "one content is continued by three"
    assert report.num_salted == 2
    assert report.numbers[FIRST] == 1


def test_an_empty_journal_is_sound():
    report = check_journal(bytes(3 * record_bytes(BLOCK_SIZE)), BLOCK_SIZE)
    assert (report.findings, report.num_known, report.longest_chain) == ([], 0, 0)


def _tear(memory: bytearray) -> None:
    memory[SECOND * record_bytes(BLOCK_SIZE) + 20] ^= 1


def _change_hash(memory: bytearray) -> None:
    content = make_contents()[1]
    write(_journal(memory), replace(content, hash=b"x" * 32))


def _change_key(memory: bytearray) -> None:
    write(_journal(memory), replace(make_contents()[1], key=SALT))


def _continue_itself(memory: bytearray) -> None:
    write(_journal(memory), replace(make_contents()[1], parent=2))


def _run_in_a_circle(memory: bytearray) -> None:
    write(_journal(memory), replace(make_contents()[1], parent=3))


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (_tear, Kind.TORN),
        (_change_hash, Kind.UNTRUE),
        (_change_key, Kind.UNTRUE),
        (_continue_itself, Kind.CYCLE),
        (_run_in_a_circle, Kind.CYCLE),
    ],
)
def test_a_wrong_record_is_named_and_what_continues_it_counts_no_longer(
    memory: bytearray, damage: Callable[[bytearray], None], kind: Kind
):
    damage(memory)
    report = check_journal(bytes(memory), BLOCK_SIZE)
    assert [(finding.kind, finding.block, finding.content) for finding in report.findings] == [(kind, SECOND, 2)]
    assert report.states[SECOND] is RecordState.DAMAGED
    assert report.states[THIRD] is RecordState.UNREACHABLE
    assert report.num_known == 3
    assert report.numbers[SECOND] == 2


@pytest.mark.parametrize("new_number", [None, 50])
def test_the_same_content_twice_is_wrong(memory, new_number):
    content = make_contents()[-1]
    write(_journal(memory), replace(content, number=new_number or content.number), block=22)
    report = check_journal(bytes(memory), BLOCK_SIZE)
    assert [(finding.kind, finding.block) for finding in report.findings] == [(Kind.DUPLICATE, 22)]
    assert report.states[SALTED_END] is RecordState.KNOWN


def test_blocks_whose_prefix_was_evicted_are_no_damage(memory):
    _journal(memory).clear(FIRST)
    report = check_journal(bytes(memory), BLOCK_SIZE)
    assert report.findings == []
    assert report.counts["unreachable"] == 5
    assert report.num_known == 2


def test_what_the_inspector_knows_is_what_a_scheduler_would_take_over(memory):
    for damage in (_tear, _change_hash, _run_in_a_circle):
        spoilt = bytearray(memory)
        damage(spoilt)
        report = check_journal(bytes(spoilt), BLOCK_SIZE)
        restored = {block for block, _ in PrefixJournal(_journal(spoilt), 1).restore(chain_hash)}
        assert restored == {block for block, state in enumerate(report.states) if state is RecordState.KNOWN}
