"""A scheduler that dies, and one that comes back: whole outputs are those of an undisturbed run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from support.collected import PATIENCE_S, Collected, read, read_tokens, request, run
from support.fake_scheduler import FakeScheduler, Pause, Script, Submitted, Together

from quire.columns import pack_u32, unpack_u32
from quire.errors import InvalidRequestError, OverloadedError, QuireError, ServiceUnavailableError, StartupError
from quire.gateway import connection, request_stream, scheduler_client
from quire.gateway.flow_control import FlowLimits
from quire.gateway.request_stream import SequenceEnd
from quire.gateway.scheduler_client import SchedulerClient
from quire.internal.v1 import scheduler_pb2
from quire.v1 import generate_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

CANCELLED = scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED


@pytest_asyncio.fixture(loop_scope="module")
async def client(scheduler: FakeScheduler) -> AsyncIterator[SchedulerClient]:
    client = await SchedulerClient.connect(scheduler.address, timeout=PATIENCE_S)
    yield client
    await client.close()


@contextlib.asynccontextmanager
async def outage(scheduler: FakeScheduler, client: SchedulerClient) -> AsyncIterator[None]:
    """In the block there is no scheduler, and the client knows it."""
    await scheduler.crash()
    async with asyncio.timeout(PATIENCE_S):
        while client.is_connected:
            await asyncio.sleep(0.01)
    yield
    await scheduler.start()


def attempts(scheduler: FakeScheduler) -> list[tuple[int, dict[int, int]]]:
    """Of each submission: its attempt, and the number of output tokens by sequence."""
    return [
        (
            submitted.message.attempt,
            {state.index: len(state.output_token_ids) // 4 for state in submitted.message.sequences},
        )
        for submitted in scheduler.requests
    ]


def until(event: asyncio.Event, num_tokens: int, total: int = 12) -> Script:
    """So many tokens, and the rest once the event is set."""

    def script(message: scheduler_pb2.SubmitRequest, index: int) -> list[int | Pause | Together]:
        tokens = [100 + 20 * index + position for position in range(total)]
        return [*tokens[:num_tokens], Pause(event), *tokens[num_tokens:]]

    return script


async def test_it_goes_on_where_it_was(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    go_on = asyncio.Event()
    scheduler.script = until(go_on, 5)
    message = request()
    message.tenant.name, message.priority, message.cache_salt = "one", 3, b"salt"
    stream = await client.submit(message)
    collected = Collected(1)
    await read_tokens(stream, collected, 5)
    async with outage(scheduler, client):
        assert stream.is_unfinished
    await scheduler.wait_requests(2)
    go_on.set()
    rest = await read(stream)
    assert collected.token_ids[0] + rest.token_ids[0] == list(range(100, 112))
    first, second = (submitted.message for submitted in scheduler.requests)
    assert unpack_u32(second.sequences[0].output_token_ids) == list(range(100, 105))
    assert (first.attempt, second.attempt) == (0, 1)
    for name in ("gateway_id", "request_key", "prompt_token_ids", "arrival_time_ns", "tenant", "priority"):
        assert getattr(first, name) == getattr(second, name)
    assert (second.cache_salt, second.eos_token_ids) == (b"salt", pack_u32([2]))
    assert rest.cached_tokens == [], "the first attempt's count"


async def test_only_unfinished_sequences_go_on(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    never = asyncio.Event()

    def script(message: scheduler_pb2.SubmitRequest, index: int) -> list[int | Pause | Together]:
        return [[100, 2], [101, Pause(never)], [Pause(never)], [103, 103, Pause(never)]][index]

    scheduler.script = script
    stream = await client.submit(request(4))
    collected = Collected(4)
    await read_tokens(stream, collected, 5)
    client.abort_sequence(stream, 3, scheduler_pb2.ABORT_REASON_STOP_STRING)
    async with outage(scheduler, client):
        scheduler.script = lambda message, index: [100 + index] * 20
    assert collected.ends[0] == SequenceEnd("stop")
    async with asyncio.timeout(PATIENCE_S):
        while not (collected.ends[1] and collected.ends[2]):
            collected.add(await stream.next_chunk())
    assert attempts(scheduler) == [(0, {0: 0, 1: 0, 2: 0, 3: 0}), (1, {1: 1, 2: 0})]
    assert collected.token_ids == [[100, 2], [101] * 12, [102] * 12, [103, 103]]


@pytest.mark.parametrize(
    ("params", "tokens", "end"),
    [
        ({}, [100] * 12, SequenceEnd("length")),
        ({}, [100, 2], SequenceEnd("stop")),
        ({"stop_token_ids": [7]}, [100, 7], SequenceEnd("stop", 7)),
        ({"max_tokens": 10_000}, [100] * (256 - 20), SequenceEnd("length")),
        ({"ignore_eos": True, "max_tokens": 2}, [100, 2], SequenceEnd("length")),
    ],
)
async def test_a_sequence_whose_end_was_not_heard_ends(
    client: SchedulerClient, scheduler: FakeScheduler, params: dict[str, Any], tokens: list[int], end: SequenceEnd
) -> None:
    scheduler.script = lambda message, index: [Together(tokens), Pause(asyncio.Event())]
    scheduler.sends_ends = False
    stream = await client.submit(request(**params))
    collected = Collected(1)
    await read_tokens(stream, collected, len(tokens))
    assert collected.ends == [None]
    await scheduler.restart()
    assert (await read(stream)).ends == [end]
    assert len(scheduler.requests) == 1, "there is nothing to compute"


async def test_a_submission_in_flight_is_made_again(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    scheduler.submit_delay = PATIENCE_S
    submitting = asyncio.create_task(client.submit(request()))
    await scheduler.wait_requests()
    scheduler.submit_delay = 0
    await scheduler.restart()
    stream = await submitting
    assert len((await read(stream)).token_ids[0]) == 12
    assert [number for number, _ in attempts(scheduler)] == [0, 1]
    client.release(stream)


async def test_what_came_whole_before_the_answer_is_not_submitted_again(
    client: SchedulerClient, scheduler: FakeScheduler
) -> None:
    scheduler.submit_delay = PATIENCE_S
    submitting = asyncio.create_task(client.submit(request()))
    await scheduler.wait_requests()
    async with asyncio.timeout(PATIENCE_S):
        while client.awaits_outputs:
            await asyncio.sleep(0.01)
    await scheduler.restart()
    stream = await submitting
    assert len((await read(stream)).token_ids[0]) == 12
    assert len(scheduler.requests) == 1, "there is nothing to compute"
    client.release(stream)


async def test_new_requests_wait_for_the_scheduler(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    scheduler.script = lambda message, index: [100] * 12
    async with outage(scheduler, client):
        submitting = [asyncio.create_task(client.submit(request())) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in submitting)
    streams = [await task for task in submitting]
    for stream in streams:
        assert (await read(stream)).token_ids == [[100] * 12]
    assert attempts(scheduler) == [(0, {0: 0})] * 3
    keys = [submitted.message.request_key for submitted in scheduler.requests]
    assert keys == sorted(keys)


async def test_new_requests_wait_for_a_while(
    client: SchedulerClient, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_client, "_SUBMIT_TIMEOUT_S", 0.1)
    async with outage(scheduler, client):
        with pytest.raises(ServiceUnavailableError, match=r"in 0\.1 s") as caught:
            await client.submit(request())
        assert caught.value.retry_after is not None
        await client.wait_idle()


async def test_waiting_requests_count(scheduler: FakeScheduler) -> None:
    client = await SchedulerClient.connect(scheduler.address, PATIENCE_S, max_requests=1)
    async with outage(scheduler, client):
        waiting = asyncio.create_task(client.submit(request()))
        await asyncio.sleep(0.01)
        with pytest.raises(OverloadedError):
            await client.submit(request())
    client.abort(await waiting, CANCELLED)
    await client.close()


async def test_requests_come_again_in_their_order(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    scheduler.script = until(asyncio.Event(), 1)
    streams = [await client.submit(request()) for _ in range(8)]
    await asyncio.gather(*(stream.next_chunk() for stream in streams))
    await scheduler.restart()
    await scheduler.wait_requests(16)
    keys = [submitted.message.request_key for submitted in scheduler.requests]
    assert keys == [stream.key for stream in streams] * 2


async def test_what_nobody_wants_any_more_does_not_come_again(
    client: SchedulerClient, scheduler: FakeScheduler
) -> None:
    scheduler.script = until(asyncio.Event(), 1)
    left, kept = await client.submit(request()), await client.submit(request())
    async with outage(scheduler, client):
        client.abort(left, CANCELLED)
        waiting = asyncio.create_task(client.submit(request()))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait((waiting,))
    assert waiting.cancelled()
    await scheduler.wait_requests(3)
    await asyncio.sleep(0.05)
    assert [submitted.message.request_key for submitted in scheduler.requests] == [left.key, kept.key, kept.key]
    assert scheduler.aborts == []


async def test_an_abort_during_the_resubmission_is_sent(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    scheduler.script = until(asyncio.Event(), 1)
    stream = await client.submit(request())
    scheduler.submit_delay = 0.2
    await scheduler.restart()
    await scheduler.wait_requests(2)
    client.abort(stream, CANCELLED)
    # At once, and when the submission is known to have been heard.
    aborts = await scheduler.wait_aborts(2)
    assert {abort.request_key for abort in aborts} == {stream.key}


async def test_a_paused_request_is_paused_again(scheduler: FakeScheduler) -> None:
    limits = FlowLimits(per_request=4)
    client = await SchedulerClient.connect(scheduler.address, PATIENCE_S, flow_limits=limits)
    scheduler.script = lambda message, index: [100 + position for position in range(100)]
    scheduler.step_delay = 0.002
    stream = await client.submit(request(max_tokens=100))

    async def paused(submitted: Submitted) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while submitted.may_run.is_set():
                await asyncio.sleep(0.01)

    await paused(scheduler.requests[0])
    await scheduler.restart()
    await scheduler.wait_requests(2)
    await paused(scheduler.requests[1])
    assert (await read(stream)).token_ids == [list(range(100, 200))]
    await client.close()


async def test_one_that_is_refused_ends_and_the_others_go_on(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    go_on = asyncio.Event()
    scheduler.script = until(go_on, 3)
    refused, kept = await client.submit(request()), await client.submit(request(max_tokens=11))
    await read_tokens(refused, Collected(1), 3)
    scheduler.refuse = lambda message: (
        InvalidRequestError("no", field="prompt") if message.request_key == refused.key else None
    )
    await scheduler.restart()
    with pytest.raises(InvalidRequestError, match=r"^no$"):
        await refused.next_chunk()
    go_on.set()
    assert len((await read(kept)).token_ids[0]) == 11


async def test_a_scheduler_that_cannot_take_it_yet_is_asked_again(
    client: SchedulerClient, scheduler: FakeScheduler
) -> None:
    go_on = asyncio.Event()
    scheduler.script = until(go_on, 3)
    stream = await client.submit(request())
    refusals = [ServiceUnavailableError("not yet")] * 2
    scheduler.refuse = lambda message: refusals.pop() if refusals else None
    await scheduler.restart()
    go_on.set()
    assert (await read(stream)).token_ids == [list(range(100, 112))]
    assert refusals == []


async def test_another_model_is_the_end(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    scheduler.script = until(asyncio.Event(), 1)
    stream = await client.submit(request())
    await stream.next_chunk()
    before = scheduler.description.executors[0].fingerprint
    scheduler.description.executors[0].fingerprint = b"another"
    try:
        await scheduler.restart()
        error = await client.wait_lost()
        assert isinstance(error, StartupError)
        for call in (stream.next_chunk(), client.submit(request())):
            with pytest.raises(StartupError, match="another model"):
                await call
        assert not client.is_connected
    finally:
        scheduler.description.executors[0].fingerprint = before


async def test_what_runs_is_given_up_when_nobody_comes_back(
    client: SchedulerClient, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "OUTAGE_LIMIT_S", 0.2)
    scheduler.script = until(asyncio.Event(), 1)
    stream = await client.submit(request())
    collected = Collected(1)
    await read_tokens(stream, collected, 1)
    async with outage(scheduler, client):
        with pytest.raises(ServiceUnavailableError, match=r"has not come back for 0\.2 s"):
            await stream.next_chunk()
        await client.wait_idle()
    scheduler.script = lambda message, index: [100] * 12
    assert (await run(client, request())).token_ids == [[100] * 12], "the client goes on trying"


async def test_beams_begin_again(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    scheduler.script = until(asyncio.Event(), 0)
    stream = await client.submit(request(2, use_beam_search=True))
    async with outage(scheduler, client):
        scheduler.script = lambda message, index: [Together([100 + index] * 12)]
    assert (await read(stream, 2)).token_ids == [[100] * 12, [101] * 12]
    assert attempts(scheduler) == [(0, {0: 0, 1: 0}), (1, {0: 0, 1: 0})]


async def test_an_embedding_begins_again(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    scheduler.script = lambda message, index: [Pause(asyncio.Event())]
    message = request()
    message.pooling = generate_pb2.POOLING_TYPE_LAST
    stream = await client.submit(message)
    scheduler.reset_script()
    await scheduler.restart()
    async with asyncio.timeout(PATIENCE_S):
        chunk = await stream.next_chunk()
    assert chunk.embedding and not stream.is_unfinished
    client.release(stream)


async def test_logprobs_of_a_prompt_go_on_where_they_were(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    undisturbed = await run(client, request(prompt_logprobs=1))
    scheduler.script = lambda message, index: [Pause(asyncio.Event())]
    stream = await client.submit(request(prompt_logprobs=1))
    first_half = scheduler_pb2.StepOutputs()
    positions = [generate_pb2.TokenLogprobs(logprob=entry) for entry in undisturbed.prompt_logprobs[:7]]
    first_half.prompt_logprobs.add(request_key=stream.key, start=1, positions=positions)
    scheduler.send(first_half)
    collected = Collected(1)
    collected.add(await stream.next_chunk())
    async with outage(scheduler, client):
        scheduler.reset_script()
    rest = await read(stream)
    assert collected.prompt_logprobs + rest.prompt_logprobs == undisturbed.prompt_logprobs
    assert rest.token_ids == undisturbed.token_ids
    assert scheduler.requests[-1].params.HasField("prompt_logprobs")


async def test_logprobs_of_a_prompt_that_all_came_are_not_asked_for_again(
    client: SchedulerClient, scheduler: FakeScheduler
) -> None:
    go_on = asyncio.Event()
    scheduler.script = until(go_on, 2)
    stream = await client.submit(request(prompt_logprobs=1))
    collected = Collected(1)
    await read_tokens(stream, collected, 2)
    assert len(collected.prompt_logprobs) == 19
    async with outage(scheduler, client):
        go_on.set()
    assert (await read(stream)).prompt_logprobs == []
    assert not scheduler.requests[-1].params.HasField("prompt_logprobs")


async def test_outputs_of_the_old_attempt_are_dropped(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    scheduler.script = lambda message, index: [Pause(asyncio.Event())]
    stream = await client.submit(request())
    scheduler.drop_streams()
    await scheduler.wait_requests(2)
    for attempt, token_id in [(0, 5), (1, 6), (2, 7)]:
        scheduler.send(scheduler.tokens_message(stream.key, 0, attempt=attempt, token_id=token_id))
    collected = Collected(1)
    await read_tokens(stream, collected, 1)
    assert collected.token_ids == [[6]]


async def test_what_ended_before_the_loss_stays_to_be_read(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    stream = await client.submit(request(max_tokens=3))
    async with asyncio.timeout(PATIENCE_S):
        while stream.is_unfinished:
            await asyncio.sleep(0.01)
    await scheduler.restart()
    assert len((await read(stream)).token_ids[0]) == 3
    assert len(scheduler.requests) == 1


async def test_closing_during_an_outage_ends_all(scheduler: FakeScheduler) -> None:
    client = await SchedulerClient.connect(scheduler.address, PATIENCE_S)
    async with outage(scheduler, client):
        waiting = asyncio.create_task(client.submit(request()))
        await asyncio.sleep(0.01)
        async with asyncio.timeout(PATIENCE_S):
            await client.close()
            with pytest.raises(QuireError, match="shutting down"):
                await waiting


async def test_a_request_that_may_be_what_ends_schedulers_is_given_up(
    client: SchedulerClient, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_stream, "MAX_LOSSES", 2)
    never = asyncio.Event()

    def script(message: scheduler_pb2.SubmitRequest, index: int) -> list[int | Pause | Together]:
        # One gets a token from each scheduler, the other gets none.
        known = len(message.sequences[0].output_token_ids) // 4
        return [*(range(100, 101 + known) if message.priority else ()), Pause(never)]

    scheduler.script = script
    barren = await client.submit(request())
    lively_request = request()
    lively_request.priority = 1
    lively = await client.submit(lively_request)
    collected = Collected(1)
    for losses in range(1, 4):
        await read_tokens(lively, collected, losses)
        async with outage(scheduler, client):
            pass
    with pytest.raises(QuireError, match="2 schedulers in a row"):
        async with asyncio.timeout(PATIENCE_S):
            await barren.next_chunk()
    await read_tokens(lively, collected, 4)
    assert collected.token_ids == [[100, 101, 102, 103]]
    client.abort(lively, CANCELLED)
