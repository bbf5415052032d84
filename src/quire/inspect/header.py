"""The first page of a pool, check by check."""

from __future__ import annotations

import os
from dataclasses import dataclass

from quire.errors import KvPoolError
from quire.inspect.findings import Finding, Kind
from quire.kv_layout import HEADER_BYTES, LAYOUT_VERSION, KvPoolHeader, PoolState, find_version
from quire.kv_pool import boot_id
from quire.units import format_bytes


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, and what was found."""

    name: str
    is_good: bool
    text: str


@dataclass(frozen=True, slots=True)
class HeaderReport:
    """`header` is None where its checksum does not match: nothing in it means anything then."""

    checks: list[Check]
    header: KvPoolHeader | None
    # Bytes of the file or memory, and of them those that are allocated.
    size: int
    allocated: int

    @property
    def findings(self) -> list[Finding]:
        return [
            Finding(Kind.STALE if check.name == "state" else Kind.HEADER, f"{check.name}: {check.text}")
            for check in self.checks
            if not check.is_good
        ]

    @property
    def journal_is_there(self) -> bool:
        """Whether all of the journal is within the file."""
        return self.header is not None and self.size >= self.header.layout.data_offset


def check_header(descriptor: int) -> HeaderReport:
    """Raises KvPoolError for what is no pool, or one of another version of the format; OSError if it is unreadable."""
    page = os.pread(descriptor, HEADER_BYTES, 0)
    found = os.fstat(descriptor)
    allocated = found.st_blocks * 512  # the unit of st_blocks, whatever the file system's is (stat(2))
    version = find_version(page)
    if version is None:
        raise KvPoolError("it is not a KV pool: its first bytes are not a pool's magic")
    if version != LAYOUT_VERSION:
        raise KvPoolError(
            f"its layout version is {version}, and this program reads {LAYOUT_VERSION}: it was made by another release "
            "of Quire, or its header is damaged"
        )
    checks = [Check("magic", True, "it begins as a KV pool does"), Check("version", True, f"layout {version}")]
    try:
        header = KvPoolHeader.unpack(page)
    except KvPoolError as error:
        return HeaderReport([*checks, Check("checksum", False, error.message)], None, found.st_size, allocated)
    checks.append(Check("checksum", True, "what the header says is what was written"))
    checks += [_check_size(header, found.st_size), _check_allocation(found.st_size, allocated)]
    checks.append(_check_state(header))
    model = header.layout.fingerprint.hex()[:16]
    checks.append(Check("fingerprint", True, f"{model}…: KV means nothing with other weights or another KV format"))
    return HeaderReport(checks, header, found.st_size, allocated)


def _check_size(header: KvPoolHeader, size: int) -> Check:
    expected = header.layout.total_bytes
    if size == expected:
        return Check("size", True, f"{format_bytes(size)}, as the header says")
    what = "it is cut off" if size < expected else "something was appended"
    return Check("size", False, f"{size} bytes, and its header says {expected}: {what}")


def _check_allocation(size: int, allocated: int) -> Check:
    text = f"{format_bytes(allocated)} of {format_bytes(size)} have memory"
    if allocated < size:
        text += "; the rest is a hole (of a pool in memory: it comes while the server runs)"
    return Check("allocation", True, text)


def _check_state(header: KvPoolHeader) -> Check:
    same_boot = header.boot_id == boot_id()
    if header.state is PoolState.DISCARDED:
        text = "DISCARDED: a process that could not be ended may still write it; the next server makes another one"
        return Check("state", False, text)
    if header.state is PoolState.CLEAN:
        return Check("state", True, "CLEAN: its server has ended in order, and all of it is on the disk")
    if same_boot:
        return Check("state", True, "OPEN: in use, or its server was killed in this boot of the machine; both are well")
    text = f"OPEN since another boot ({header.boot_id.hex()[:8]}…): it was in use when the machine went down"
    return Check("state", False, text)
