"""Who enters: bounded queues, tenants' limits, and when to come again. The clock is the test's."""

from __future__ import annotations

import pytest
from support.scheduling import Bench

from quire.errors import OverloadedError
from quire.internal.v1 import scheduler_pb2
from quire.scheduler.admission import Admission
from quire.scheduler.token_bucket import TokenBucket

PROMPT = [1, 2, 3, 4]


class Entrance:
    """A scheduler behind its admission, at a time that only the test moves."""

    def __init__(self, *, max_queued_requests: int = 100, max_queued_tokens: int | None = None, **bench) -> None:
        self.now = 1000.0
        self.bench = Bench(**bench)
        self.admission = Admission(self.bench.scheduler, max_queued_requests, max_queued_tokens, clock=lambda: self.now)

    def submit(
        self, tenant: str = "", *, prompt: list[int] = PROMPT, max_tokens: int = 4, weight=1.0, **limits
    ) -> None:
        """As SchedulerService does."""
        message = scheduler_pb2.Tenant(name=tenant, weight=weight, **limits)
        self.admission.admit(message, len(prompt))
        self.bench.submit(prompt, max_tokens=max_tokens, tenant=tenant, weight=weight)

    def refused(self, *args, **kwargs) -> OverloadedError:
        with pytest.raises(OverloadedError) as caught:
            self.submit(*args, **kwargs)
        assert 1 <= caught.value.retry_after <= 60
        return caught.value


def test_the_queue_is_bounded_beyond_the_slots_that_are_free() -> None:
    entrance = Entrance(max_queued_requests=3, max_num_seqs=2)
    for _ in range(5):
        entrance.submit()
    assert entrance.refused().field == "max_queued_requests"
    entrance.bench.step()
    assert entrance.refused().field == "max_queued_requests", "two run now, and three wait"
    entrance.bench.drain()
    entrance.submit()


def test_queued_tokens_are_bounded_and_one_long_prompt_always_enters() -> None:
    entrance = Entrance(max_queued_tokens=10, max_num_seqs=1)
    entrance.submit(prompt=[1] * 30)
    assert entrance.refused(prompt=[1]).field == "max_queued_tokens"
    entrance.bench.step()
    entrance.submit(prompt=[1] * 6)
    entrance.submit(prompt=[1] * 4)
    assert entrance.refused(prompt=[1]).field == "max_queued_tokens"


def test_a_flood_does_not_keep_others_out_of_their_share_of_the_queue() -> None:
    entrance = Entrance(max_queued_requests=8, max_num_seqs=1, policy="fair")
    for _ in range(9):
        entrance.submit("flood")
    entrance.refused("flood")
    for _ in range(4):
        entrance.submit("quiet")
    entrance.refused("quiet")
    for _ in range(2):
        entrance.submit("third", weight=0.5)
    entrance.refused("third", weight=0.5)


def test_requests_at_a_time_are_counted_until_they_end() -> None:
    entrance = Entrance()
    for _ in range(2):
        entrance.submit("a", max_concurrent_requests=2)
    error = entrance.refused("a", max_concurrent_requests=2)
    assert error.field == "max_concurrent_requests"
    assert "max_concurrent_requests = 2" in error.message
    entrance.submit("b", max_concurrent_requests=2)
    entrance.bench.drain()
    entrance.submit("a", max_concurrent_requests=2)


def test_requests_per_minute() -> None:
    entrance = Entrance()
    for _ in range(6):
        entrance.submit("a", requests_per_minute=6)
    error = entrance.refused("a", requests_per_minute=6)
    assert (error.field, error.retry_after) == ("requests_per_minute", 10)
    entrance.now += 10
    entrance.submit("a", requests_per_minute=6)
    entrance.refused("a", requests_per_minute=6)
    entrance.submit("b", requests_per_minute=6)


def test_tokens_per_minute_count_prompts_at_once_and_output_as_it_comes() -> None:
    entrance = Entrance()
    entrance.submit("a", prompt=[1] * 30, max_tokens=20, tokens_per_minute=60)
    entrance.submit("a", prompt=[1] * 30, max_tokens=20, tokens_per_minute=60)
    assert entrance.refused("a", prompt=[1], tokens_per_minute=60).retry_after == 1
    entrance.bench.drain(overlap=1)
    error = entrance.refused("a", prompt=[1], tokens_per_minute=60)
    assert (error.field, error.retry_after) == ("tokens_per_minute", 41)
    entrance.now += 41
    entrance.submit("a", prompt=[1], tokens_per_minute=60)


def test_a_refused_request_uses_nothing_up() -> None:
    entrance = Entrance()
    for _ in range(5):
        entrance.refused("a", prompt=[1] * 10, tokens_per_minute=100, max_concurrent_requests=0, requests_per_minute=2)
    for _ in range(2):
        entrance.submit("a", prompt=[1] * 10, tokens_per_minute=100, requests_per_minute=2)


def test_a_prompt_larger_than_the_limit_waits_for_a_full_bucket() -> None:
    entrance = Entrance()
    entrance.submit("a", prompt=[1] * 40, tokens_per_minute=20)
    assert entrance.refused("a", prompt=[1] * 40, tokens_per_minute=20).retry_after == 60
    entrance.now += 120
    entrance.submit("a", prompt=[1] * 40, tokens_per_minute=20)


def test_limits_that_a_reload_changes_count_at_once() -> None:
    entrance = Entrance()
    entrance.submit("a", requests_per_minute=1)
    entrance.refused("a", requests_per_minute=1)
    entrance.submit("a")
    entrance.submit("a", requests_per_minute=2)


def test_only_the_first_prompt_of_a_request_meets_the_queues_bounds() -> None:
    entrance = Entrance(max_queued_requests=1, max_num_seqs=1)
    for _ in range(2):
        entrance.submit()
    message = scheduler_pb2.Tenant(requests_per_minute=1)
    with pytest.raises(OverloadedError):
        entrance.admission.admit(message, 4)
    entrance.admission.admit(message, 4, is_first=False)
    with pytest.raises(OverloadedError, match="requests_per_minute"):
        entrance.admission.admit(message, 4, is_first=False)


def test_retry_after_is_the_time_in_which_the_queue_empties_at_the_present_pace() -> None:
    entrance = Entrance(max_queued_requests=20, max_num_seqs=1)
    for _ in range(10):
        entrance.submit(max_tokens=1)
    entrance.bench.drain()
    entrance.now += 5
    for _ in range(21):
        entrance.submit(max_tokens=1)
    assert entrance.refused().retry_after == 11, "21 wait, and two a second end"
    entrance.now += 300
    assert entrance.refused().retry_after == 60


def test_a_bucket_fills_steadily_and_no_further_than_a_minute() -> None:
    bucket = TokenBucket(60, 60, 0.0)
    bucket.take(50, 0.0)
    assert bucket.wait_s(20, 0.0) == 10
    assert bucket.wait_s(20, 5.0) == 5
    assert bucket.wait_s(20, 10.0) == 0
    bucket.take(0, 1000.0)
    assert bucket.level == 60
    bucket.take(100, 1000.0)
    assert (bucket.level, bucket.wait_s(1, 1000.0)) == (-40, 41)
