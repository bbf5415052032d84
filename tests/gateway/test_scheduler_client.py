from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from support.fake_scheduler import FakeScheduler, Pause, running

from quire.columns import pack_u32
from quire.errors import QuireError, ServiceUnavailableError, StartupError
from quire.gateway.request_stream import RequestStream
from quire.gateway.scheduler_client import SchedulerClient
from quire.internal.v1 import scheduler_pb2
from quire.v1 import generate_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def client(scheduler: FakeScheduler) -> AsyncIterator[SchedulerClient]:
    client = await SchedulerClient.connect(scheduler.address, timeout=5)
    yield client
    await client.close()


def submit_request(n: int = 1, max_tokens: int = 3) -> scheduler_pb2.SubmitRequest:
    return scheduler_pb2.SubmitRequest(
        prompt_token_ids=pack_u32([1, 2]),
        sequences=[scheduler_pb2.SequenceState(index=index) for index in range(n)],
        sampling_params=generate_pb2.SamplingParams(max_tokens=max_tokens),
    )


async def tokens_of(stream: RequestStream, count: int) -> list[tuple[int, int]]:
    """(sequence, token) pairs, until there are `count`."""
    tokens: list[tuple[int, int]] = []
    while len(tokens) < count:
        chunk = await stream.next_chunk()
        tokens += [(index, token_id) for index, part in chunk.sequences.items() for token_id in part.token_ids]
    return tokens


async def silent(scheduler: FakeScheduler) -> None:
    """From now on only the test speaks."""
    scheduler.script = lambda request, index: [Pause(asyncio.Event())]


async def test_requests_get_their_own_tokens(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    scheduler.script = lambda request, index: [10 * request.request_key + index] * 3
    scheduler.cached_tokens = 2
    streams = [await client.submit(submit_request(n=2)) for _ in range(3)]
    for stream in streams:
        tokens = await tokens_of(stream, 6)
        assert sorted(tokens) == [(index, 10 * stream.key + index) for index in (0, 0, 0, 1, 1, 1)]
        client.release(stream)
    async with asyncio.timeout(1):
        await client.wait_idle()
    assert [request.message.attempt for request in scheduler.requests] == [0, 0, 0]
    assert all(request.message.arrival_time_ns > 1e18 for request in scheduler.requests)


async def test_what_it_has_and_what_is_of_another_attempt_is_dropped(
    client: SchedulerClient, scheduler: FakeScheduler
) -> None:
    await silent(scheduler)
    stream = await client.submit(submit_request())
    for position, attempt, token_id in [(0, 0, 5), (0, 0, 6), (1, 1, 7), (1, 0, 8), (0, 0, 9)]:
        message = scheduler.tokens_message(stream.key, position, attempt=attempt, token_id=token_id)
        scheduler.send(message)
    assert await tokens_of(stream, 2) == [(0, 5), (0, 8)]
    unknown = scheduler.tokens_message(stream.key + 1000, 0)
    scheduler.send(unknown)
    scheduler.send(scheduler.tokens_message(stream.key, 2, token_id=10))
    assert await tokens_of(stream, 1) == [(0, 10)]


async def test_a_gap_fails_only_its_request(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    await silent(scheduler)
    broken, whole = await client.submit(submit_request()), await client.submit(submit_request())
    scheduler.send(scheduler.tokens_message(broken.key, 1))
    with pytest.raises(QuireError, match="skipped tokens 0 to 0"):
        await broken.next_chunk()
    (abort,) = await scheduler.wait_aborts()
    assert abort.request_key == broken.key
    scheduler.send(scheduler.tokens_message(whole.key, 0, token_id=4))
    assert await tokens_of(whole, 1) == [(0, 4)]


async def test_a_failed_request_ends_after_what_came_before(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    await silent(scheduler)
    failed, whole = await client.submit(submit_request()), await client.submit(submit_request())
    message = scheduler.tokens_message(failed.key, 0, token_id=4)
    message.failed.add(request_key=failed.key, attempt=1, message="of another attempt")
    message.failed.add(request_key=failed.key, message="no way on")
    scheduler.send(message)
    assert await tokens_of(failed, 1) == [(0, 4)]
    with pytest.raises(QuireError, match=r"^no way on$"):
        await failed.next_chunk()
    assert scheduler.aborts == [], "the scheduler has ended it already"
    scheduler.send(scheduler.tokens_message(whole.key, 0, token_id=5))
    assert await tokens_of(whole, 1) == [(0, 5)]


async def test_a_malformed_message_is_a_lost_connection(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    await silent(scheduler)
    stream = await client.submit(submit_request())
    scheduler.send(scheduler_pb2.StepOutputs(request_keys=b"123"))
    await scheduler.wait_requests(2)
    scheduler.send(scheduler.tokens_message(stream.key, 0, attempt=1, token_id=4))
    assert await tokens_of(stream, 1) == [(0, 4)]


async def test_a_refused_request_leaves_nothing_behind(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    scheduler.submit_error = ServiceUnavailableError("full")
    with pytest.raises(ServiceUnavailableError, match=r"^full$"):
        await client.submit(submit_request())
    async with asyncio.timeout(1):
        await client.wait_idle()


async def test_a_cancelled_submit_is_aborted(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    scheduler.submit_delay = 5.0
    submitting = asyncio.create_task(client.submit(submit_request()))
    await scheduler.wait_requests()
    submitting.cancel()
    (abort,) = await scheduler.wait_aborts()
    assert abort.request_key == scheduler.requests[0].message.request_key
    async with asyncio.timeout(1):
        await client.wait_idle()


async def test_aborts_on_their_way_are_sent_before_the_end(scheduler: FakeScheduler) -> None:
    await silent(scheduler)
    client = await SchedulerClient.connect(scheduler.address, timeout=5)
    stream = await client.submit(submit_request())
    client.abort(stream, scheduler_pb2.ABORT_REASON_SHUTDOWN)
    client.abort(stream, scheduler_pb2.ABORT_REASON_SHUTDOWN)
    await client.close()
    assert [abort.reason for abort in scheduler.aborts] == [scheduler_pb2.ABORT_REASON_SHUTDOWN]


async def test_it_waits_for_a_scheduler_that_is_late(tmp_path: Path) -> None:
    late = FakeScheduler(tmp_path / "late.sock")
    connecting = asyncio.create_task(SchedulerClient.connect(late.address, timeout=10))
    await asyncio.sleep(0.05)
    late.describe_error = ServiceUnavailableError("its executors are not ready")
    async with running(late):
        await asyncio.sleep(0.2)
        assert not connecting.done()
        late.describe_error = None
        client = await connecting
        assert client.description.vocab_size == late.description.vocab_size
        await client.close()


async def test_a_scheduler_that_never_comes_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"scheduler at unix:.*nobody.sock is not ready after 0.2 s") as caught:
        await SchedulerClient.connect(f"unix:{tmp_path}/nobody.sock", timeout=0.2)
    assert caught.value.field == "scheduler"


async def test_what_came_meanwhile_comes_together(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    await silent(scheduler)
    stream = await client.submit(submit_request())
    for position in range(3):
        scheduler.send(scheduler.tokens_message(stream.key, position, token_id=70 + position))
    await asyncio.sleep(0.1)
    chunk = await stream.next_chunk()
    assert [part.token_ids for part in chunk.sequences.values()] == [[70, 71, 72]]
    next_chunk = asyncio.create_task(stream.next_chunk())
    scheduler.send(scheduler.tokens_message(stream.key, 3, token_id=73))
    assert [part.token_ids for part in (await next_chunk).sequences.values()] == [[73]]


async def test_an_error_comes_after_what_came_before_it(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    await silent(scheduler)
    stream = await client.submit(submit_request())
    scheduler.send(scheduler.tokens_message(stream.key, 0, token_id=70))
    scheduler.send(scheduler.tokens_message(stream.key, 2))
    await asyncio.sleep(0.1)
    assert await tokens_of(stream, 1) == [(0, 70)]
    for _ in range(2):
        with pytest.raises(QuireError, match="skipped"):
            await stream.next_chunk()


def prompt_message(key: int, start: int, count: int) -> scheduler_pb2.StepOutputs:
    """Logprobs of `count` tokens of a prompt, each its position."""
    message = scheduler_pb2.StepOutputs()
    positions = [generate_pb2.TokenLogprobs(logprob=float(at)) for at in range(start, start + count)]
    message.prompt_logprobs.add(request_key=key, start=start, positions=positions)
    return message


async def test_logprobs_of_a_prompt_that_come_again_are_dropped(
    client: SchedulerClient, scheduler: FakeScheduler
) -> None:
    await silent(scheduler)
    stream = await client.submit(submit_request())
    for start, count in [(1, 3), (1, 2), (2, 4), (5, 1), (6, 1)]:
        scheduler.send(prompt_message(stream.key, start, count))
    scheduler.send(scheduler.tokens_message(stream.key, 0))
    logprobs: list[float] = []
    while True:
        chunk = await stream.next_chunk()
        logprobs += [position.logprob for position in chunk.prompt_logprobs]
        if chunk.sequences:
            break
    assert logprobs == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    client.release(stream)


async def test_a_gap_in_a_prompt_fails_its_request(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    await silent(scheduler)
    stream = await client.submit(submit_request())
    scheduler.send(prompt_message(stream.key, 2, 1))
    with pytest.raises(QuireError, match="skipped the logprobs of prompt tokens 1 to 1"):
        await stream.next_chunk()
    await scheduler.wait_aborts()
