"""A row's attention is the same bit for bit, whatever it is computed with and by however many programs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.attention import Case, make_case
from torch import Tensor
from torch.nn import functional

from quire import kernels
from quire.kernels import attention_work
from quire.kernels.attention_work import ITEM, PlannedWork, WorkShape
from quire.kernels.metadata import AttentionMetadata

KV_HEADS, GROUP = 1, 3

# Programs of a launch that nothing is split for; that take half of a tile each; one section each.
WALKED, HALVES, SECTIONS = 0, 2, 1000


@pytest.fixture(autouse=True)
def _short_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_work, "SECTION", 128)


@pytest.fixture
def case(device: torch.device) -> Case:
    """A chunk of prefill over two tiles, and a step of decoding: 3 and 2 sections."""
    dtype = torch.float16 if device.type == "cpu" else torch.bfloat16
    return make_case([30, 1], [340, 200], num_kv_heads=KV_HEADS, group=GROUP, head_dim=32, dtype=dtype)


def only(case: Case, sequence: int, num_queries: int) -> Case:
    """The last queries of one sequence, alone."""
    end = int(case.metadata.query_start[sequence + 1])
    rows = slice(end - num_queries, end)
    metadata = AttentionMetadata(
        query_start=torch.tensor([0, num_queries], dtype=torch.int32),
        context_lens=case.metadata.context_lens[sequence : sequence + 1],
        block_tables=case.metadata.block_tables[sequence : sequence + 1],
        slot_mapping=case.metadata.slot_mapping[rows],
    )
    return dataclasses.replace(case, query=case.query[rows], metadata=metadata)


def plan(num_programs: int, query_start: list[int], context_lens: list[int]) -> PlannedWork:
    with pytest.MonkeyPatch.context() as patch:
        if num_programs == WALKED:
            patch.setattr(attention_work, "_MAX_PARTIAL_ROWS", 0)
        planned = WorkShape(KV_HEADS, GROUP, num_programs or 1000).plan(query_start, context_lens)
    longest = planned.items[:, ITEM.index("num_sections")].max()
    assert (planned.partial_rows > 0, longest == 1) == (num_programs != WALKED, num_programs == SECTIONS)
    return planned


def attend(case: Case, device: torch.device, num_programs: int, window: int | None = None, padding: int = 0) -> Tensor:
    metadata = case.metadata
    starts, contexts = metadata.query_start.tolist(), metadata.context_lens.tolist()
    starts += [starts[-1] + row + 1 for row in range(padding)]
    contexts += [0] * padding
    planned = plan(num_programs, starts, contexts)
    if padding:
        planned = planned.padded(WorkShape(KV_HEADS, GROUP, 1000).capacity(starts[-1], len(contexts), 1000))
    metadata = AttentionMetadata(
        torch.tensor(starts, dtype=torch.int32, device=device),
        torch.tensor(contexts, dtype=torch.int32, device=device),
        functional.pad(metadata.block_tables, (0, 0, 0, padding)).to(device),
        functional.pad(metadata.slot_mapping, (0, padding), value=-1).to(device),
        planned.to(device),
    )
    query = functional.pad(case.query, (0, 0, 0, 0, 0, padding)).to(device)
    keys, values = case.key_cache.to(device), case.value_cache.to(device)
    output = kernels.paged_attention(query, keys, values, metadata, scale=case.scale, sliding_window=window)
    return output[: len(case.query)].cpu()


@pytest.mark.parametrize("window", [None, 150])
def test_split_or_walked(case, device, window):
    walked = attend(case, device, WALKED, window)
    for num_programs in (HALVES, SECTIONS):
        assert torch.equal(attend(case, device, num_programs, window), walked)


@pytest.mark.parametrize("num_programs", [WALKED, SECTIONS])
def test_alone_or_in_a_batch(case, device, num_programs):
    together = attend(case, device, WALKED)
    assert torch.equal(attend(only(case, 1, 1), device, num_programs), together[30:])
    assert torch.equal(attend(only(case, 0, 30), device, num_programs), together[:30])


@pytest.mark.parametrize("window", [None, 150])
@pytest.mark.parametrize("num_programs", [WALKED, SECTIONS])
def test_prefill_or_decode(case, device, num_programs, window):
    chunk = attend(case, device, WALKED, window)[:30]
    for num_queries in (1, 8):
        assert torch.equal(attend(only(case, 0, num_queries), device, num_programs, window), chunk[-num_queries:])


@pytest.mark.parametrize("num_programs", [WALKED, SECTIONS])
def test_padded_as_for_a_graph(case, device, num_programs):
    assert torch.equal(attend(case, device, num_programs, padding=5), attend(case, device, num_programs))


def test_what_was_planned_is_not_planned_again(case, device, monkeypatch):
    """Nothing is read on the host."""
    monkeypatch.setattr(AttentionMetadata, "lengths", None)
    attend(case, device, SECTIONS)
