"""The pool and its journal, which outlive every process: the supervisor has their descriptor."""

from __future__ import annotations

from support.fake_executor import FakeKvMemory, digests

from quire.columns import unpack_u32
from quire.kv_journal import KvJournal, record_bytes


class _Slots(dict[tuple[int, int], bytes]):
    """KV by block and offset; notes the blocks that are written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: set[int] = set()

    def __setitem__(self, slot: tuple[int, int], value: bytes) -> None:
        self.written.add(slot[0])
        super().__setitem__(slot, value)


class Pool:
    """What executors write, and what the scheduler says of it in the journal."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.memory = FakeKvMemory(block_size)
        self.memory.slots = self._slots = _Slots()
        self._journal_memory = bytearray(num_blocks * record_bytes(block_size))
        self.journal = KvJournal(memoryview(self._journal_memory), block_size)

    @property
    def written(self) -> set[int]:
        """Blocks that were written since this was cleared."""
        return self._slots.written

    def check_written(self) -> None:
        """No block is written of which the journal says anything. Raises AssertionError."""
        journaled = [block for block in self.written if block in self.journal]
        assert not journaled, f"a step writes blocks {journaled}, which are in the journal"

    def check_journal(self) -> None:
        """Whatever the journal says of a block is in the block. Raises AssertionError."""
        contents: dict[int, list[int]] = {0: []}
        size = self.memory.block_size
        for block, record in sorted(self.journal.records(), key=lambda item: item[1].number):
            if record.parent in contents:
                tokens = contents[record.number] = contents[record.parent] + unpack_u32(record.tokens)
                held = [self._slots.get((block, offset)) for offset in range(size)]
                assert held == digests(tokens)[-size:], f"the journal is wrong of block {block}"

    def spoil_written(self) -> None:
        """Whoever wrote these blocks died in it."""
        for block in self.written:
            self._slots.update({(block, offset): b"garbage" for offset in range(self.memory.block_size)})

    def tear_journal(self, place: int) -> None:
        """Whoever wrote the record at this byte died in it."""
        self._journal_memory[place % len(self._journal_memory)] ^= 0x55
