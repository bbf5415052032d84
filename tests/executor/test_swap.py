"""An executor's side of the swap tier: attaching it, and the moves of a plan."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.step_driver import load, on_offer, pool_layout

from quire.columns import pack_u32
from quire.config import BUNDLED_MODEL
from quire.errors import KvPoolError, QuireError
from quire.executor.kv_cache import KvCache
from quire.executor.model import Model
from quire.executor.swap import SwapPool
from quire.internal.v1 import executor_pb2
from quire.kv_pool import KvPool

NUM_BLOCKS, NUM_HOST_BLOCKS, BLOCK_BYTES = 7, 9, 24


@pytest.fixture(scope="module")
def tiny_model() -> Model:
    return load(BUNDLED_MODEL)


def _plan(outs: dict[int, int], ins: dict[int, int]) -> executor_pb2.StepPlan:
    return executor_pb2.StepPlan(
        swap_out_sources=pack_u32(outs),
        swap_out_destinations=pack_u32(outs.values()),
        swap_in_sources=pack_u32(ins),
        swap_in_destinations=pack_u32(ins.values()),
    )


def _numbered(count: int, first: int) -> torch.Tensor:
    """Each block is full of its own number."""
    return torch.arange(first, first + count, dtype=torch.uint8).unsqueeze(1).repeat(1, BLOCK_BYTES)


@pytest.mark.parametrize(
    ("outs", "ins", "host", "pool"),
    [
        ({}, {}, {}, {}),
        ({0: 3}, {}, {3: 0}, {}),
        # Neighbours in both, in one, backwards.
        ({1: 4, 2: 5, 3: 6, 5: 7}, {}, {4: 1, 5: 2, 6: 3, 7: 5}, {}),
        ({3: 0, 2: 1, 1: 2}, {8: 6}, {0: 3, 1: 2, 2: 1}, {6: 108}),
        # A block goes out, and another content comes in.
        ({2: 0}, {5: 2, 6: 3}, {0: 2}, {2: 105, 3: 106}),
        # What went out comes in again elsewhere.
        ({2: 0}, {0: 4}, {0: 2}, {4: 2}),
    ],
)
def test_moves(outs: dict[int, int], ins: dict[int, int], host: dict[int, int], pool: dict[int, int]) -> None:
    """Blocks of the pool are 0, 1, …, those of the host 100, 101, …"""
    memory, blocks = _numbered(NUM_HOST_BLOCKS, 100), _numbered(NUM_BLOCKS, 0)
    SwapPool(memory, blocks).move(_plan(outs, ins))
    expected_host, expected_pool = _numbered(NUM_HOST_BLOCKS, 100), _numbered(NUM_BLOCKS, 0)
    for block, value in host.items():
        expected_host[block] = value
    for block, value in pool.items():
        expected_pool[block] = value
    assert torch.equal(memory, expected_host)
    assert torch.equal(blocks, expected_pool)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (_plan({NUM_BLOCKS: 0}, {}), "moves block 7, there are 7"),
        (_plan({0: NUM_HOST_BLOCKS}, {}), "moves block 9, there are 9"),
        (_plan({}, {NUM_HOST_BLOCKS: 0}), "moves block 9, there are 9"),
        (_plan({}, {0: NUM_BLOCKS}), "moves block 7, there are 7"),
        (executor_pb2.StepPlan(swap_in_sources=pack_u32([1])), "differ in length"),
        (executor_pb2.StepPlan(swap_in_sources=b"abc", swap_in_destinations=b"abc"), "not made of u32"),
    ],
)
def test_moves_that_cannot_be(plan: executor_pb2.StepPlan, message: str) -> None:
    with pytest.raises(QuireError, match=message):
        SwapPool(_numbered(NUM_HOST_BLOCKS, 100), _numbered(NUM_BLOCKS, 0)).move(plan)


def _attach(model: Model, request: executor_pb2.AttachKvPoolRequest, pool: KvPool) -> SwapPool | None:
    cache = KvCache.map(pool, 0, model.cache_group, model.kv_cache_dtype)
    return SwapPool.attach(request, cache, model.fingerprint, model.cache_group)


def test_it_attaches_what_is_handed_over(tiny_model: Model, tmp_path: Path) -> None:
    layout, host_layout = pool_layout(tiny_model, num_blocks=4), pool_layout(tiny_model, num_blocks=3)
    with KvPool.create_memfd(layout) as pool, KvPool.create_memfd(host_layout, 0, "swap_space") as host:
        host.allocate(0, 3)
        with on_offer(host, tmp_path / "swap.sock") as offer:
            request = executor_pb2.AttachKvPoolRequest(epoch=layout.epoch, num_blocks=4, block_size=layout.block_size)
            request.swap.handover_socket, request.swap.num_blocks = offer.handover_socket, 3
            swap = _attach(tiny_model, request, pool)
        assert swap is not None
        pool.segment(0)[:] = bytes([5]) * len(pool.segment(0))
        swap.move(_plan({1: 2}, {}))
        block = layout.block_bytes
        assert bytes(host.segment(0)) == bytes(2 * block) + bytes([5]) * block
        swap.close()


def test_it_refuses_another_tier_than_announced(tiny_model: Model, tmp_path: Path) -> None:
    layout = pool_layout(tiny_model, num_blocks=4)
    with (
        KvPool.create_memfd(layout) as pool,
        KvPool.create_memfd(layout) as host,
        on_offer(host, tmp_path / "swap.sock") as offer,
    ):
        request = executor_pb2.AttachKvPoolRequest(epoch=layout.epoch, num_blocks=4, block_size=layout.block_size)
        request.swap.handover_socket, request.swap.num_blocks = offer.handover_socket, 5
        with pytest.raises(KvPoolError, match="has 4 blocks"):
            _attach(tiny_model, request, pool)


def test_a_request_without_a_tier(tiny_model: Model) -> None:
    with KvPool.create_memfd(pool_layout(tiny_model, num_blocks=4)) as pool:
        assert _attach(tiny_model, executor_pb2.AttachKvPoolRequest(), pool) is None
