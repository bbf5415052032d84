"""Pools with a journal that tests have written, and what is in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quire import pool_file
from quire.columns import pack_u32
from quire.kv_journal import KvJournal, chain_hash
from quire.kv_layout import CacheGroupLayout, KvPoolLayout

BLOCK_SIZE = 4
NUM_BLOCKS = 24
LAYOUT = KvPoolLayout(BLOCK_SIZE, NUM_BLOCKS, 2, 77, bytes(range(32)), (CacheGroupLayout(3, 2, 8, 2),))
SALT = b"s" * 32


@dataclass(frozen=True)
class Content:
    """What a block holds."""

    block: int
    number: int
    parent: int
    hash: bytes
    key: bytes
    tokens: bytes


def make_contents() -> list[Content]:
    """Two prompts: one of three blocks that three others continue, and one of two blocks with a salt."""
    contents: list[Content] = []

    def add(block: int, parent: Content | None, key: bytes = b"") -> Content:
        number = len(contents) + 1
        tokens = pack_u32(range(number * 10, number * 10 + BLOCK_SIZE))
        hash_ = chain_hash(parent.hash if parent else b"", tokens, key)
        contents.append(Content(block, number, parent.number if parent else 0, hash_, key, tokens))
        return contents[-1]

    third = add(5, add(3, add(7, None)))
    for block in (0, 9, 11):
        add(block, third)
    add(21, add(20, None, SALT), SALT)
    return contents


def write(journal: KvJournal, content: Content, block: int | None = None) -> None:
    journal.write(
        content.block if block is None else block,
        content.number,
        content.parent,
        content.hash,
        content.key,
        content.tokens,
    )


def make_pool(path: Path) -> Path:
    """A pool file that no process has, with `make_contents` in it."""
    with pool_file.create(path, LAYOUT) as pool:
        journal = pool.journal()
        for content in make_contents():
            write(journal, content)
        del journal
    return path
