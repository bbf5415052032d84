"""Keeps the pool's journal in step with the prefix cache, and fills the prefix cache from it at the start.

A block's record is written when the step that filled it is acknowledged, if the block still holds the same then, and
cleared when its content is forgotten, which is before a plan that writes it can be sent. So at any moment, and
wherever this process dies, records name blocks that are complete and that nobody writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from quire.kv_journal import KvJournal
from quire.scheduler.block_pool import Block, CachedPrefix


class PrefixJournal:
    """The one writer of a journal. `restore` comes before all else: it makes journal and prefix cache agree."""

    def __init__(self, journal: KvJournal, num_lanes: int) -> None:
        self._journal = journal
        self._acknowledged_steps = [0] * num_lanes
        # Blocks and their content that have no record yet, by lane and by the step that fills them.
        self._incomplete: list[dict[int, list[tuple[Block, CachedPrefix]]]] = [{} for _ in range(num_lanes)]
        # Numbers contents, in the order in which they came to be, and their uses.
        self._clock = 0

    def __contains__(self, block: Block) -> bool:
        return block.id in self._journal

    def add(self, block: Block, prefix: CachedPrefix) -> None:
        """A block is findable now by what a planned (or acknowledged) step fills it with."""
        self._clock += 1
        prefix.number = self._clock
        if prefix.step <= self._acknowledged_steps[prefix.lane]:
            self._write(block, prefix)
        else:
            self._incomplete[prefix.lane].setdefault(prefix.step, []).append((block, prefix))

    def acknowledge(self, lane: int, step: int) -> None:
        """An executor has computed everything up to `step`."""
        self._acknowledged_steps[lane] = step
        incomplete = self._incomplete[lane]
        for done in [planned for planned in incomplete if planned <= step]:
            for block, prefix in incomplete.pop(done):
                if block.prefix is prefix:  # else it was forgotten meanwhile
                    self._write(block, prefix)

    def use(self, block: Block) -> None:
        """A sequence has used a block, and all before it, until now."""
        if block in self:
            self._clock += 1
            self._journal.set_last_use(block.id, self._clock)

    def forget(self, block: Block) -> None:
        """A block's content counts no longer. Returns before anyone may write it."""
        self._journal.clear(block.id)

    def restore(self, chain_hash: Callable[[bytes, bytes, bytes], bytes]) -> Iterator[tuple[int, CachedPrefix]]:
        """Block ids and contents that the journal proves, least recently used first; clears all other records.

        A record counts if it is intact, its hash is that of its tokens, key and parent, and its parent counts.
        """
        contents: dict[int, tuple[int, CachedPrefix, int]] = {}
        hashes: set[bytes] = set()
        # A content is younger than its parent, so parents come first.
        for block_id, record in sorted(self._journal.records(), key=lambda item: item[1].number):
            parent = contents[record.parent][1] if record.parent in contents else None
            is_connected = parent is not None or not record.parent
            is_true = record.hash == chain_hash(parent.hash if parent else b"", record.tokens, record.extra_key)
            if is_connected and is_true and record.number not in contents and record.hash not in hashes:
                prefix = CachedPrefix(record.hash, parent, record.tokens, record.extra_key, 0, 0, record.number)
                contents[record.number] = (block_id, prefix, record.last_use)
                hashes.add(record.hash)
        kept = {block_id for block_id, _, _ in contents.values()}
        for block_id in range(self._journal.num_blocks):
            if block_id not in kept:
                self._journal.clear(block_id)
        last_uses = _last_uses([(prefix, last_use) for _, prefix, last_use in contents.values()])
        self._clock = max(last_uses.values(), default=0)
        # Of a chain that was used at one time, the end is given up first.
        for number in sorted(contents, key=lambda number: (last_uses[number], -number)):
            yield contents[number][:2]

    def check(self, blocks: list[Block]) -> None:
        """Compares records and blocks (O(pool)). Raises AssertionError."""
        for block in blocks:
            if block not in self:
                continue
            record, prefix = self._journal.read(block.id), block.prefix
            assert prefix is not None, f"{block} has a record and is not cached"
            assert record is not None and record.number == prefix.number, f"the record of {block} is of something else"
            assert prefix.step <= self._acknowledged_steps[prefix.lane], f"{block} has a record before it is complete"

    def _write(self, block: Block, prefix: CachedPrefix) -> None:
        parent = prefix.parent.number if prefix.parent else 0
        self._journal.write(block.id, prefix.number, parent, prefix.hash, prefix.extra_key, prefix.tokens)


def _last_uses(contents: list[tuple[CachedPrefix, int]]) -> dict[int, int]:
    """By number; whoever uses a content uses all before it. `contents` has parents first."""
    last_uses: dict[int, int] = {}
    for prefix, last_use in reversed(contents):
        latest = max(last_uses.get(prefix.number, 0), last_use, prefix.number)
        last_uses[prefix.number] = latest
        if prefix.parent is not None:
            last_uses[prefix.parent.number] = max(last_uses.get(prefix.parent.number, 0), latest)
    return last_uses
