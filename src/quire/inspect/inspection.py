"""Everything that can be known of a pool, looked at twice where somebody may be writing."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass, field
from typing import Any, Final

from quire.errors import QuireError
from quire.inspect.findings import Finding, Kind, confirmed
from quire.inspect.header import HeaderReport, check_header
from quire.inspect.journal import JournalReport, check_journal
from quire.inspect.live import SchedulerView, ask_scheduler, find_contradictions, find_leaks
from quire.inspect.processes import HeldPool, held_pools, identity_of
from quire.inspect.target import Target
from quire.kv_layout import HEADER_BYTES, KvPoolLayout
from quire.units import format_bytes

# Many steps of any server: whoever writes a record, takes a block or replaces a pool is done with it by then.
_SECOND_LOOK_S: Final = 0.5


@dataclass(slots=True)
class Inspection:
    """What was found. Parts are None where what they rest on is damaged or absent."""

    name: str
    header: HeaderReport
    held: HeldPool | None
    journal: JournalReport | None = None
    scheduler: SchedulerView | None = None
    findings: list[Finding] = field(default_factory=list)
    # What is not wrong, and yet must be known to read the rest.
    notes: list[str] = field(default_factory=list)

    @property
    def layout(self) -> KvPoolLayout | None:
        return self.header.header.layout if self.header.header else None

    @property
    def is_sound(self) -> bool:
        return not self.findings


def inspect(target: Target, second_look_s: float = _SECOND_LOOK_S) -> Inspection:
    """Looks at an open pool, and again some seconds later if something seems wrong: what is wrong then too counts.

    Raises KvPoolError if it is none that this program reads, and OSError if it cannot be read.
    """
    first = look(target)
    if first.is_sound:
        return first
    time.sleep(second_look_s)
    second = look(target)
    second.findings = confirmed(first.findings, second.findings)
    return second


def look(target: Target) -> Inspection:
    """One look. Raises as `inspect` does."""
    pools = held_pools(target.descriptor)
    found = Inspection(target.name, check_header(target.descriptor), pools.get(identity_of(target.descriptor)))
    found.findings += found.header.findings
    if found.layout is not None and found.header.journal_is_there:
        memory = _read(target.descriptor, found.layout.journal_bytes, HEADER_BYTES)
        found.journal = check_journal(memory, found.layout.block_size)
        found.findings += found.journal.findings
    elif found.layout is not None:
        found.notes.append("The journal is not read: the file ends before it does.")
    else:
        found.notes.append("The journal is not read: where it lies is what the header says.")
    if target.scheduler is not None:
        _ask(found, target.scheduler)
    elif found.held is not None:
        found.notes.append("No server of yours that uses it answers: its block tables are not known.")
    found.findings += _unserved(pools)
    return found


def _read(descriptor: int, size: int, offset: int) -> bytes:
    """Raises OSError if the file ends before, which it did not a moment ago."""
    pieces: list[bytes] = []
    while size:
        piece = os.pread(descriptor, size, offset)
        if not piece:
            raise OSError(errno.EIO, "it is cut off while it is read")
        pieces.append(piece)
        size, offset = size - len(piece), offset + len(piece)
    return b"".join(pieces)


def _ask(found: Inspection, address: str) -> None:
    """Adds what the scheduler says."""
    try:
        view = ask_scheduler(address)
    except QuireError as error:
        found.notes.append(f"The scheduler is not heard, so the block tables are not known: {error.message}")
        return
    if found.layout is not None and view.state.num_blocks != found.layout.num_blocks:
        found.notes.append(f"The scheduler has a pool of {view.state.num_blocks} blocks: it is not this one.")
        return
    found.scheduler = view
    found.findings += find_leaks(view)
    if found.journal is not None:
        found.findings += find_contradictions(view, found.journal.numbers)


def _unserved(pools: dict[Any, HeldPool]) -> list[Finding]:
    """Pools that keep memory although nobody hands out their blocks any more."""
    return [
        Finding(
            Kind.UNSERVED,
            f"{format_bytes(pool.size)} of a KV pool without a scheduler are kept by "
            + ", ".join(f"process {holder.pid} ({holder.title}, {holder.state})" for holder in pool.holders),
            content=pool.holders[0].pid,
        )
        for pool in pools.values()
        if pool.is_unserved
    ]
