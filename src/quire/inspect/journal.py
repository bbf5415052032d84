"""The journal of a pool: every record checked, and the chains that the records make.

The rules are those by which a scheduler takes a journal over (`scheduler/prefix_journal.py`): a record counts if it is
intact, its hash is that of its tokens, key and parent, and its parent counts. Where the scheduler only drops what does
not count, this says why.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from quire.inspect.findings import Finding, Kind
from quire.kv_journal import JournalRecord, KvJournal, chain_hash


class RecordState(StrEnum):
    """What a block's record is worth."""

    # There is none.
    EMPTY = "empty"
    KNOWN = "known"
    # Intact, but what it continues is not known (any more), so that nobody can find it: an ordinary sight, as blocks
    # are evicted one by one.
    UNREACHABLE = "unreachable"
    DAMAGED = "damaged"


@dataclass(slots=True)
class JournalReport:
    """`states` and `numbers` (of the contents; 0: none) have a row for each block."""

    states: list[RecordState]
    numbers: list[int]
    findings: list[Finding] = field(default_factory=list)
    # Of known contents, by their numbers: how many blocks there are up to and with each, and how many continue it.
    depths: dict[int, int] = field(default_factory=dict)
    children: Counter[int] = field(default_factory=Counter)
    # Known contents that only prompts with the same key (a tenant's, a salt's) may share.
    num_salted: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """Blocks by the state of their record."""
        found = Counter(self.states)
        return {state.value: found[state] for state in RecordState}

    @property
    def num_known(self) -> int:
        return len(self.depths)

    @property
    def num_prompts(self) -> int:
        """Beginnings that are known; prompts that begin alike count once."""
        return sum(depth == 1 for depth in self.depths.values())

    @property
    def longest_chain(self) -> int:
        """In blocks."""
        return max(self.depths.values(), default=0)

    @property
    def num_chains(self) -> int:
        """Contents that nothing known continues: different prompts (with their outputs), as far as they are known."""
        return sum(number not in self.children for number in self.depths)

    @property
    def sharing(self) -> dict[int, int]:
        """How many contents are continued by so many others, from 2 on: there prompts part that share a prefix."""
        return dict(sorted(Counter(count for count in self.children.values() if count > 1).items()))


def check_journal(memory: bytes, block_size: int) -> JournalReport:
    """Checks the journal's bytes, num_blocks × record_bytes(block_size)."""
    journal = KvJournal(memoryview(memory), block_size)
    numbers = [journal.number(block) for block in range(journal.num_blocks)]
    report = JournalReport([RecordState.EMPTY] * journal.num_blocks, numbers)
    intact: list[tuple[int, JournalRecord]] = []
    for block, number in enumerate(numbers):
        if not number:
            continue
        record = journal.read(block)
        if record is None:
            _damaged(report, Kind.TORN, block, number, "its checksum does not match: half written, or changed later")
        else:
            intact.append((block, record))
    _check_chains(report, intact)
    return report


def _check_chains(report: JournalReport, intact: list[tuple[int, JournalRecord]]) -> None:
    """Takes in records that are intact, parents first."""
    known: dict[int, JournalRecord] = {}
    blocks: dict[int, int] = {}
    by_hash: dict[bytes, int] = {}
    for block, record in sorted(intact, key=lambda item: item[1].number):
        number, parent = record.number, known.get(record.parent)
        if number in blocks:
            text = f"content {number} is in block {blocks[number]} already, and a number names one content"
            _damaged(report, Kind.DUPLICATE, block, number, text)
        elif record.parent >= number:
            # Numbers are given in the order in which contents come to be, so this is the only way to a cycle.
            text = f"it continues content {record.parent}, which came later or is itself: chains would run in circles"
            _damaged(report, Kind.CYCLE, block, number, text)
        elif record.parent and parent is None:
            report.states[block] = RecordState.UNREACHABLE
        elif record.hash != chain_hash(parent.hash if parent else b"", record.tokens, record.extra_key):
            text = "its hash is not the SHA-256 of what it continues, its tokens and its key"
            _damaged(report, Kind.UNTRUE, block, number, text)
        elif record.hash in by_hash:
            text = f"block {by_hash[record.hash]} has the same content, and only one of them can be found"
            _damaged(report, Kind.DUPLICATE, block, number, text)
        else:
            known[number], by_hash[record.hash] = record, block
            report.states[block] = RecordState.KNOWN
            report.depths[number] = report.depths.get(record.parent, 0) + 1
            report.num_salted += bool(record.extra_key)
            if record.parent:
                report.children[record.parent] += 1
        blocks.setdefault(number, block)


def _damaged(report: JournalReport, kind: Kind, block: int, number: int, text: str) -> None:
    report.states[block] = RecordState.DAMAGED
    report.findings.append(Finding(kind, f"block {block}, content {number}: {text}", block, number))
