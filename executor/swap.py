"""The swap tier as an executor has it: host memory that executors of a pool share, and the moves of a plan.

On a CPU moves are copies within the host's memory, done before the step computes. On a GPU the host's memory is pinned,
and a stream of its own copies while the step before still computes. It need not wait for that step: the scheduler
names only blocks that no step in flight reads or writes (`scheduler/swap_tier.py`). The step itself waits for its moves
on the device, and with it whatever comes later in its stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire.errors import KvPoolError, QuireError
from quire.executor.device import AsyncDevice
from quire.executor.kv_cache import KvCache, check_layout, check_model
from quire.internal.v1 import executor_pb2
from quire.kv_layout import CacheGroupLayout
from quire.kv_pool import KvPool

# (source, destination, number) of blocks that follow each other in both.
_Run = tuple[int, int, int]


class SwapPool:
    """The host's blocks behind a pool. One thread uses it."""

    def __init__(self, host: Tensor, pool: Tensor, device: AsyncDevice | None = None) -> None:
        """
        Args:
            host: uint8 [host blocks, bytes of a block], of shared memory.
            pool: uint8 [blocks, bytes of a block], on the CPU or a GPU.
            device: whose steps work on the pool; None: they are computed when they are launched.

        Raises:
            KvPoolError: the memory cannot be pinned.
        """
        self._host = host
        self._pool = pool
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if pool.device.type == "cuda":
            _pin(host)
            self._stream = torch.cuda.Stream(pool.device)  # type: ignore[no-untyped-call]

    @classmethod
    def attach(
        cls,
        request: executor_pb2.AttachKvPoolRequest,
        cache: KvCache,
        fingerprint: bytes,
        group: CacheGroupLayout,
        device: AsyncDevice | None = None,
    ) -> SwapPool | None:
        """The tier that a request names, behind the pool that it names; None if it names none.

        Raises KvPoolError for one that is missing, damaged, not as announced, of another model, or cannot be pinned.
        """
        if not request.HasField("swap"):
            return None
        # Leaving the block closes the descriptor; the tensor keeps the mapping.
        with KvPool.attach_handover(Path(request.swap.handover_socket)) as pool:
            check_layout(
                pool.layout,
                num_blocks=request.swap.num_blocks,
                block_size=request.block_size,
                epoch=request.epoch,
            )
            check_model(pool.layout, fingerprint=fingerprint, group=group, rank=0)
            host = torch.frombuffer(pool.segment(0), dtype=torch.uint8).view(pool.layout.num_blocks, -1)
        return cls(host, cache.blocks, device)

    def move(self, plan: executor_pb2.StepPlan) -> None:
        """Does the moves of a plan, before anything of it computes. Raises QuireError for blocks that do not exist."""
        if not plan.swap_out_sources and not plan.swap_in_sources:
            return
        outs = _runs(plan.swap_out_sources, plan.swap_out_destinations, len(self._pool), len(self._host))
        ins = _runs(plan.swap_in_sources, plan.swap_in_destinations, len(self._host), len(self._pool))
        if self._device is None:
            self._copy(outs, ins)
        else:
            self._device.submit(lambda: self._copy(outs, ins))

    def close(self) -> None:
        """Lets go of the memory, once no step is in flight."""
        if self._stream is not None:
            self._stream.synchronize()
            self._stream = None
            _unpin(self._host)

    def _copy(self, outs: list[_Run], ins: list[_Run]) -> None:
        """In the order that the scheduler counts on: a block may be swapped out and then in."""
        if self._stream is None:
            _copy_runs(self._pool, self._host, outs)
            _copy_runs(self._host, self._pool, ins)
            return
        step = torch.cuda.current_stream(self._pool.device)
        with torch.cuda.stream(self._stream):
            _copy_runs(self._pool, self._host, outs)
            _copy_runs(self._host, self._pool, ins)
        step.wait_stream(self._stream)


def _copy_runs(sources: Tensor, destinations: Tensor, runs: list[_Run]) -> None:
    for source, destination, count in runs:
        destinations[destination : destination + count].copy_(sources[source : source + count], non_blocking=True)


def _runs(sources: bytes, destinations: bytes, num_sources: int, num_destinations: int) -> list[_Run]:
    """Neighbours become one copy: what is evicted together mostly lies together."""
    if len(sources) != len(destinations):
        raise QuireError("the columns of the plan's moves differ in length")
    from_ids, to_ids = _block_ids(sources, num_sources), _block_ids(destinations, num_destinations)
    return list(_joined(from_ids, to_ids))


def _joined(sources: NDArray[np.int64], destinations: NDArray[np.int64]) -> Iterator[_Run]:
    if not len(sources):
        return
    is_cut = (np.diff(sources) != 1) | (np.diff(destinations) != 1)
    starts = [0, *(np.flatnonzero(is_cut) + 1).tolist(), len(sources)]
    for start, end in pairwise(starts):
        yield int(sources[start]), int(destinations[start]), end - start


def _block_ids(column: bytes, num_blocks: int) -> NDArray[np.int64]:
    if len(column) % 4:
        raise QuireError("a column of the plan's moves is not made of u32")
    ids = np.frombuffer(column, "<u4").astype(np.int64)
    if len(ids) and ids.max() >= num_blocks:
        raise QuireError(f"the plan moves block {ids.max()}, there are {num_blocks}")
    return ids


def _pin(memory: Tensor) -> None:
    """Has the driver map memory that is there already, so that it copies without the processor."""
    error = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)  # type: ignore[no-untyped-call]
    if int(error) != 0:
        raise KvPoolError(
            f"the driver cannot pin {memory.nbytes} bytes of the host for the swap tier (CUDA error {int(error)}); "
            "lower --swap-space",
            field="swap_space",
        )


def _unpin(memory: Tensor) -> None:
    error = torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())  # type: ignore[no-untyped-call]
    torch.cuda.check_error(int(error))
