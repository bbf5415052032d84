"""The pool's memory, made while the server already works.

To allocate shared memory is to clear it, which takes a kernel about a second for 7 GB: too long to wait for, when the
first requests need a few blocks. So the pool opens with a part of its blocks, and the others join as they get memory.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from quire.errors import KvPoolError
from quire.kv_layout import KvPoolLayout
from quire.kv_pool import KvPool
from quire.scheduler.block_pool import BlockPool
from quire.scheduler.step_loop import Work

logger = logging.getLogger(__name__)

# The first part takes some hundredths of a second, a further one a hundredth.
_FIRST_BYTES: Final = 256 * 2**20
_PART_BYTES: Final = 64 * 2**20


def num_first_blocks(layout: KvPoolLayout, max_model_len: int) -> int:
    """Blocks to open with: at least one request of full length must always fit."""
    longest = -(-max_model_len // layout.block_size)
    return min(layout.num_blocks, max(longest, _FIRST_BYTES // layout.block_bytes))


async def grow(pool: KvPool, blocks: BlockPool, work: Work) -> None:
    """Allocates what is missing, part by part, in a thread. If memory runs out, the pool stays as large as it got."""
    part = max(_PART_BYTES // pool.layout.block_bytes, 1)
    while (start := blocks.num_usable) < blocks.num_blocks:
        end = min(start + part, blocks.num_blocks)
        allocation = asyncio.ensure_future(asyncio.to_thread(pool.allocate, start, end))
        try:
            # The thread has the descriptor, which must not be closed (and given to another file) before it is done.
            await asyncio.shield(allocation)
        except asyncio.CancelledError:
            await asyncio.wait([allocation])
            raise
        except KvPoolError as error:
            logger.error("%s; it stays at %d of %d blocks", error, start, blocks.num_blocks)
            return
        blocks.extend(end)
        work.notify()
