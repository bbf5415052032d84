"""Sequences that an executor cannot go on with: their requests end with a reason, the others notice nothing."""

from __future__ import annotations

import pytest
from support.scheduling import Bench

from quire.columns import unpack_u32
from quire.errors import QuireError
from quire.internal.v1 import scheduler_pb2
from quire.scheduler.outputs import OutputRouter, StepEvents
from quire.scheduler.sequence import Sequence
from quire.v1 import generate_pb2


def _fail(bench: Bench, slot: int) -> StepEvents:
    """Delivers the oldest result, in which the slot failed."""
    plan, result = bench.lanes[0].computed.popleft()
    result.failures.add(slot=slot, message="no way on")
    for row in range(len(plan.sampled)):
        result.logprobs.add(row=row, logprobs=generate_pb2.TokenLogprobs(logprob=-float(row)))
    return bench.scheduler.update_from_output(plan, result)


def _slot(sequence: Sequence) -> int:
    assert sequence.slot is not None
    return sequence.slot


def test_a_failed_sequence_ends_its_request() -> None:
    bench = Bench()
    bad, good = bench.submit([1, 2, 3], n=2), bench.submit([4, 5, 6])
    bench.step()
    bench.plan()
    bench.compute()
    failing = bad.sequences[1]
    row = bench.plans[-1].sequences.index(good.sequences[0])
    events = _fail(bench, _slot(failing))
    assert [(request.key, reason) for request, reason in events.failed] == [(bad.request.key, "no way on")]
    assert events.sequences == good.sequences, "nothing of the step is the failed request's"
    assert [entry.logprob for entry in events.logprobs.values()] == [-row]
    assert not events.finished
    assert all(sequence.is_finished for sequence in bad.sequences)
    good.outputs[0] += events.token_ids
    bench.drain()
    assert good.outputs[0] == good.truth(0)
    bench.check_idle()


def test_a_sequence_that_fails_again_in_the_step_in_flight_is_reported_once() -> None:
    bench = Bench()
    bad = bench.submit([1, 2, 3])
    bench.plan()
    slot = _slot(bad.sequences[0])
    bench.compute()
    bench.plan()
    bench.compute()
    assert len(_fail(bench, slot).failed) == 1
    # Another request takes the slot before the executor's second failure arrives.
    new = bench.submit([7, 8, 9])
    bench.plan()
    assert new.sequences[0].slot == slot
    assert _fail(bench, slot).failed == []
    bench.drain()
    assert new.outputs[0] == new.truth(0)
    bench.check_idle()


def test_a_failure_of_a_slot_that_is_not_in_the_plan() -> None:
    bench = Bench()
    bench.submit([1, 2, 3])
    bench.plan()
    bench.compute()
    with pytest.raises(QuireError, match="fails slot 9"):
        _fail(bench, 9)


async def test_gateways_are_told() -> None:
    bench = Bench()
    bad, good = bench.submit([1, 2, 3]), bench.submit([4, 5, 6])
    router = OutputRouter()
    outputs = router.open("gateway")
    bench.plan()
    bench.compute()
    router.publish(_fail(bench, _slot(bad.sequences[0])))
    message = await outputs.next_message()
    assert isinstance(message, scheduler_pb2.StepOutputs)
    assert [(failed.request_key, failed.attempt, failed.message) for failed in message.failed] == [(0, 0, "no way on")]
    assert len(unpack_u32(message.token_ids)) == len(good.sequences)
