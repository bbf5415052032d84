"""What is wrong with a pool."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Each is damage or a leak."""

    HEADER = "header"
    STALE = "stale content"
    TORN = "torn record"
    UNTRUE = "untrue record"
    CYCLE = "cyclic record"
    DUPLICATE = "duplicate record"
    CONTRADICTED = "contradicted record"
    LEAK = "leaked block"
    OVERUSED = "overused block"
    COUNTS = "wrong counts"
    UNSERVED = "unserved memory"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong; `block` and `content` (its number in the journal) say of what, where it is of one."""

    kind: Kind
    text: str
    block: int | None = None
    content: int = 0

    @property
    def key(self) -> tuple[Kind, int | None, int]:
        """What makes it the same finding when one looks again; its text may say how often or how much."""
        return self.kind, self.block, self.content


def confirmed(first: Iterable[Finding], second: Iterable[Finding]) -> list[Finding]:
    """Those of the second look that the first had seen too: what a writer was in the middle of is not wrong."""
    seen = {finding.key for finding in first}
    return [finding for finding in second if finding.key in seen]
