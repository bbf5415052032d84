"""The hard rule: a row's bits depend on its query, its position and its context, and on nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from quire import kernels

if TYPE_CHECKING:
    from .conftest import Case

# Longer than two partitions of the context, and no multiple of a tile.
CONTEXT = 600

SHAPES = [
    # dtype, the cache's, KV heads, group, head_dim, window
    (torch.float32, torch.float32, 2, 3, 64, None),
    (torch.bfloat16, torch.bfloat16, 1, 9, 48, None),
    (torch.float32, torch.bfloat16, 2, 4, 32, 100),
    (torch.float32, torch.int8, 1, 8, 20, 300),
    (torch.bfloat16, torch.int8, 1, 1, 80, 100),
]
# The same types once more, with other heads and windows.
OTHERS = [
    (torch.float32, torch.float32, 1, 1, 80, 100),
    (torch.float32, torch.float32, 1, 5, 20, 300),
    (torch.bfloat16, torch.bfloat16, 2, 3, 64, None),
    (torch.bfloat16, torch.float32, 1, 2, 128, None),
    (torch.float32, torch.int8, 2, 3, 64, None),
]


Shape = tuple[torch.dtype, torch.dtype, int, int, int, int | None]


@pytest.fixture(params=[*SHAPES, *(pytest.param(other, marks=pytest.mark.slow) for other in OTHERS)], ids=str)
def shape(request: pytest.FixtureRequest) -> Shape:
    chosen: Shape = request.param
    return chosen


def attend_part(case: Case, first: int, last: int, sliding_window: int | None, row: int = 0) -> Tensor:
    """Positions [first, last) of the sequence in `row`, whose new tokens are its whole context, as a step alone."""
    start = int(case.metadata.query_start[row])
    metadata = kernels.AttentionMetadata(
        torch.tensor([0, last - first], dtype=torch.int32),
        torch.tensor([last], dtype=torch.int32),
        case.metadata.block_tables[row : row + 1],
        torch.zeros(last - first, dtype=torch.int64),
    )
    part = dataclasses.replace(case, query=case.query[start + first : start + last], metadata=metadata)
    return kernels.paged_attention(*part.arguments, scale=case.scale, sliding_window=sliding_window)


def test_chunks_and_decode_equal_one_prefill(isa: str, make_case: Callable[..., Case], shape: Shape):
    dtype, cache_dtype, kv_heads, group, head_dim, window = shape
    heads = {"num_kv_heads": kv_heads, "group": group, "head_dim": head_dim}
    case = make_case([CONTEXT], [CONTEXT], **heads, dtype=dtype, cache_dtype=cache_dtype)
    whole = attend_part(case, 0, CONTEXT, window)
    assert whole.isfinite().all()
    chooser = random.Random(1)
    for _ in range(3):
        cuts = sorted({0, CONTEXT, *(chooser.randrange(1, CONTEXT) for _ in range(chooser.randrange(1, 9)))})
        chunks = [attend_part(case, first, last, window) for first, last in itertools.pairwise(cuts)]
        assert torch.equal(torch.cat(chunks), whole)
    for position in [0, 1, 15, 16, 62, 63, 64, 65, 255, 256, 257, 511, 512, CONTEXT - 1][::-1]:
        # A decode step cannot read what is not there yet, and its result must not know.
        case.spoil(0, range(position + 1, CONTEXT))
        alone = attend_part(case, position, position + 1, window)
        assert torch.equal(alone, whole[position : position + 1]), position


def test_alone_equals_in_a_batch(isa: str, make_case: Callable[..., Case], shape: Shape):
    dtype, cache_dtype, kv_heads, group, head_dim, window = shape
    chooser = random.Random(2)
    context_lens = [chooser.randrange(1, 400) for _ in range(31)] + [CONTEXT]
    query_lens = [1 if chooser.random() < 0.7 else chooser.randrange(1, length + 1) for length in context_lens]
    heads = {"num_kv_heads": kv_heads, "group": group, "head_dim": head_dim}
    case = make_case(query_lens, context_lens, **heads, dtype=dtype, cache_dtype=cache_dtype)
    together = kernels.paged_attention(*case.arguments, scale=case.scale, sliding_window=window)
    for row, (query_len, context_len) in enumerate(zip(query_lens, context_lens, strict=True)):
        rows = slice(int(case.metadata.query_start[row]), int(case.metadata.query_start[row + 1]))
        metadata = kernels.AttentionMetadata(
            torch.tensor([0, query_len], dtype=torch.int32),
            torch.tensor([context_len], dtype=torch.int32),
            case.metadata.block_tables[row : row + 1],
            case.metadata.slot_mapping[rows],
        )
        single = dataclasses.replace(case, query=case.query[rows], metadata=metadata)
        alone = kernels.paged_attention(*single.arguments, scale=case.scale, sliding_window=window)
        assert torch.equal(alone, together[rows]), row


@pytest.mark.parametrize(
    ("query_lens", "context_lens"),
    [
        ([1], [3000]),  # too few sequences for the threads: its context is shared among them
        ([40], [1500]),
        ([1] * 8, [700, 1, 650, 30, 900, 256, 257, 512]),
        ([300, 1, 1, 17], [300, 800, 64, 600]),
    ],
)
@pytest.mark.parametrize("sliding_window", [None, 300])
@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.int8])
def test_any_number_of_threads(
    isa: str,
    make_case: Callable[..., Case],
    query_lens: list[int],
    context_lens: list[int],
    sliding_window: int | None,
    cache_dtype: torch.dtype,
):
    case = make_case(query_lens, context_lens, num_kv_heads=2, group=4, head_dim=32, cache_dtype=cache_dtype)
    results = []
    for threads in (1, 2, 3, 2, 5):
        kernels.set_num_threads(threads)
        results.append(kernels.paged_attention(*case.arguments, scale=case.scale, sliding_window=sliding_window))
    assert results[0].isfinite().all()
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_block_size_and_placement_do_not_show(isa: str):
    torch.manual_seed(0)
    kv_heads, head_dim = 2, 64
    key, value = torch.randn(2, CONTEXT, kv_heads, head_dim)
    query = torch.randn(CONTEXT, 6, head_dim)
    outputs = []
    for block_size in (1, 7, 16, 32, 1000):
        count = -(-CONTEXT // block_size)
        key_cache, value_cache = torch.zeros(2, count, kv_heads, block_size, head_dim)
        table = torch.randperm(count).int()
        positions = torch.arange(CONTEXT)
        slots = table.long()[positions // block_size] * block_size + positions % block_size
        kernels.store_kv(key, value, key_cache, value_cache, slots)
        metadata = kernels.AttentionMetadata(
            torch.tensor([0, CONTEXT], dtype=torch.int32),
            torch.tensor([CONTEXT], dtype=torch.int32),
            table[None],
            slots,
        )
        outputs.append(kernels.paged_attention(query, key_cache, value_cache, metadata, scale=0.1))
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])
