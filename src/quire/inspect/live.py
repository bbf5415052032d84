"""What a running scheduler says of a pool's blocks, and where that does not agree with itself or with the journal."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from quire.columns import unpack_u32, unpack_u64
from quire.errors import QuireError
from quire.inspect.findings import Finding, Kind
from quire.internal.v1 import scheduler_pb2, scheduler_pb2_grpc
from quire.rpc import errors_from_status, open_sync_channel

_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class SchedulerView:
    """The scheduler's answer; the lists have a row for each block."""

    state: scheduler_pb2.GetKvCacheStateResponse
    ref_counts: list[int]
    retiring: list[int]
    content_numbers: list[int]

    @property
    def table_counts(self) -> Counter[int]:
        """In how many block tables each block is."""
        return Counter(block for sequence in self.state.sequences for block in unpack_u32(sequence.block_ids))

    @property
    def shared(self) -> dict[int, int]:
        """How many blocks are held so many times, from 2 on."""
        return dict(sorted(Counter(count for count in self.ref_counts if count > 1).items()))


def ask_scheduler(address: str) -> SchedulerView:
    """Raises QuireError where it does not answer, or is of a version that says too little."""
    request = scheduler_pb2.GetKvCacheStateRequest(with_blocks=True)
    with open_sync_channel(address) as channel, errors_from_status("the scheduler"):
        state = scheduler_pb2_grpc.SchedulerServiceStub(channel).GetKvCacheState(request, timeout=_TIMEOUT_S)
    return read_view(state)


def read_view(state: scheduler_pb2.GetKvCacheStateResponse) -> SchedulerView:
    """Raises QuireError if the columns are not what they should be."""
    columns = unpack_u32(state.ref_counts), unpack_u32(state.retiring), unpack_u64(state.content_numbers)
    if any(len(column) != state.num_blocks for column in columns):
        raise QuireError("the scheduler does not give the references of its blocks: it is of another release")
    return SchedulerView(state, *columns)


def find_leaks(view: SchedulerView) -> list[Finding]:
    """References that nobody has, and users without a reference."""
    state, named, findings = view.state, view.table_counts, []
    for block, references in enumerate(view.ref_counts):
        in_flight = view.retiring[block]
        users = named[block] + in_flight
        if references == users:
            continue
        kind = Kind.LEAK if references > users else Kind.OVERUSED
        text = (
            f"block {block} is held {references} times, and is in {named[block]} block tables and in {in_flight} that "
            f"steps in flight still name: {'it will never be free' if references > users else 'it may be given away'}"
        )
        findings.append(Finding(kind, text, block))
    held = sum(references > 0 for references in view.ref_counts)
    total = state.free_blocks + state.cached_blocks + state.held_blocks
    if held != state.held_blocks or total != state.num_usable_blocks:
        text = (
            f"{state.free_blocks} free + {state.cached_blocks} cached + {state.held_blocks} held blocks are counted; "
            f"{held} are held, and there are {state.num_usable_blocks}"
        )
        findings.append(Finding(Kind.COUNTS, text))
    return findings


def find_contradictions(view: SchedulerView, journal_numbers: list[int]) -> list[Finding]:
    """Records of blocks that, for the scheduler, hold something else or nothing: the next one would believe them."""
    findings = []
    for block, number in enumerate(journal_numbers):
        known = view.content_numbers[block]
        if number and number != known:
            says = f"holds content {known}" if known else "holds nothing that is known, and may be written"
            text = f"block {block}, content {number}: for the scheduler it {says}"
            findings.append(Finding(Kind.CONTRADICTED, text, block, number))
    return findings
