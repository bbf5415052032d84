"""What gateways are told: one message per gateway, merged while it is slow to read."""

from __future__ import annotations

from quire.columns import unpack_u32, unpack_u64
from quire.internal.v1 import scheduler_pb2
from quire.scheduler.outputs import OutputRouter, StepEvents
from quire.scheduler.sequence import Request, RequestKey, Sequence, SequenceStatus
from quire.v1 import generate_pb2


def _sequence(number: int, *, gateway_id: str = "a", index: int = 0, attempt: int = 0) -> Sequence:
    params = generate_pb2.SamplingParams(max_tokens=8, stop_token_ids=[7])
    request = Request(RequestKey(gateway_id, number), str(number), attempt, params, frozenset({2}))
    return Sequence(request, index, [1, 2, 3], [], 64, number)


def _events(step: int, *rows: tuple[Sequence, int, int]) -> StepEvents:
    """Of rows of (sequence, position, token id)."""
    sequences, positions, token_ids = (list(column) for column in zip(*rows, strict=True))
    return StepEvents(step, sequences=sequences, positions=positions, token_ids=token_ids)


def _logprobs(value: float) -> generate_pb2.TokenLogprobs:
    return generate_pb2.TokenLogprobs(logprob=value)


def _rows(message: scheduler_pb2.StepOutputs) -> list[tuple[int, int, int, int, int]]:
    """Rows of (request key, sequence index, attempt, position, token id)."""
    columns = (
        unpack_u64(message.request_keys),
        unpack_u32(message.sequence_indices),
        unpack_u32(message.attempts),
        unpack_u32(message.positions),
        unpack_u32(message.token_ids),
    )
    return list(zip(*columns, strict=True))


async def test_a_step_becomes_columns():
    router = OutputRouter()
    outputs = router.open("a")
    first, second = _sequence(4), _sequence(2**40, index=3, attempt=1)
    router.publish(_events(9, (first, 0, 11), (second, 5, 12)))
    message = await outputs.next_message()
    assert message.step == 9
    assert _rows(message) == [(4, 0, 0, 0, 11), (2**40, 3, 1, 5, 12)]


async def test_steps_are_merged_while_a_gateway_is_slow():
    router = OutputRouter()
    outputs = router.open("a")
    first, second = _sequence(0), _sequence(1)
    router.publish(_events(1, (first, 0, 10), (second, 0, 20)))
    router.publish(_events(2, (first, 1, 11), (second, 1, 21)))
    router.publish(_events(3, (second, 2, 22)))
    message = await outputs.next_message()
    assert message.step == 3
    assert _rows(message) == [(0, 0, 0, 0, 10), (1, 0, 0, 0, 20), (0, 0, 0, 1, 11), (1, 0, 0, 1, 21), (1, 0, 0, 2, 22)]


async def test_each_gateway_gets_its_own_rows():
    router = OutputRouter()
    outputs = {gateway_id: router.open(gateway_id) for gateway_id in "ab"}
    a0, b0, a1, gone = (_sequence(i, gateway_id=gateway_id) for i, gateway_id in enumerate("abac"))
    for step in (1, 2):
        router.publish(_events(step, (a0, step, 10), (b0, step, 20), (gone, step, 30), (a1, step, 40)))
        rows = {gateway_id: _rows(await outputs[gateway_id].next_message()) for gateway_id in "ab"}
        assert rows["a"] == [(0, 0, 0, step, 10), (2, 0, 0, step, 40)]
        assert rows["b"] == [(1, 0, 0, step, 20)]


async def test_logprobs_name_rows_of_the_message():
    router = OutputRouter()
    outputs = {gateway_id: router.open(gateway_id) for gateway_id in "ab"}
    a0, b0, a1 = (_sequence(i, gateway_id=gateway_id) for i, gateway_id in enumerate("aba"))
    for step in (1, 2):
        events = _events(step, (a0, step, 10), (b0, step, 20), (a1, step, 40))
        events.logprobs = {1: _logprobs(-1.0), 2: _logprobs(-2.0)}
        router.publish(events)
    a, b = await outputs["a"].next_message(), await outputs["b"].next_message()
    assert [(entry.row, entry.logprobs.logprob) for entry in a.logprobs] == [(1, -2.0), (3, -2.0)]
    assert [(entry.row, entry.logprobs.logprob) for entry in b.logprobs] == [(0, -1.0), (1, -1.0)]


async def test_beginnings_and_ends_are_told_beside_the_tokens():
    router = OutputRouter()
    outputs = router.open("a")
    sequence = _sequence(5, index=1, attempt=2)
    sequence.request.num_cached_tokens = 16
    sequence.token_ids.append(7)
    sequence.move_to(SequenceStatus.RUNNING)
    sequence.move_to(SequenceStatus.STOPPED)
    events = _events(1, (sequence, 0, 7))
    events.started, events.finished = [sequence.request], [sequence]
    router.publish(events)
    message = await outputs.next_message()
    assert list(message.started) == [scheduler_pb2.RequestStarted(request_key=5, attempt=2, cached_tokens=16)]
    stopped = generate_pb2.FINISH_REASON_STOP
    assert list(message.finished) == [
        scheduler_pb2.SequenceFinished(request_key=5, sequence_index=1, attempt=2, reason=stopped, stop_token_id=7)
    ]


async def test_a_closed_stream_ends_after_what_is_pending():
    router = OutputRouter()
    outputs = router.open("a")
    router.publish(_events(1, (_sequence(0), 0, 10)))
    assert router.close("a", outputs)
    assert not router.close("a", outputs)
    assert (await outputs.next_message()).step == 1
    assert await outputs.next_message() is None


async def test_gateways_hear_of_the_executors_when_they_come_and_when_it_changes():
    router = OutputRouter()
    router.announce(scheduler_pb2.SchedulerState(num_executors=2, num_live_executors=2))
    outputs = router.open("a")
    assert (await outputs.next_message()).state.num_live_executors == 2
    router.announce(scheduler_pb2.SchedulerState(num_executors=2, num_live_executors=1))
    router.announce(scheduler_pb2.SchedulerState(num_executors=2, num_live_executors=0))
    router.publish(_events(9, (_sequence(1), 0, 5)))
    message = await outputs.next_message()
    assert message.state.num_live_executors == 0, "of several that wait the latest counts"
    assert _rows(message) == [(1, 0, 0, 0, 5)]
