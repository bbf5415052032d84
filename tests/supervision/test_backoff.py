"""When a process that died is started again."""

from __future__ import annotations

from quire.supervision.backoff import MAX_FAILED_STARTS, Backoff


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def _live(backoff: Backoff, clock: Clock, health_s: float) -> float:
    """The delay after a life of so long."""
    backoff.ready()
    clock.now_s += health_s
    return backoff.next_delay_s()


def test_at_once_then_ever_later_up_to_a_limit():
    clock = Clock()
    backoff = Backoff(clock)
    delays = [_live(backoff, clock, 0.5) for _ in range(10)]
    assert delays == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]


def test_health_makes_it_begin_anew():
    clock = Clock()
    backoff = Backoff(clock)
    assert [_live(backoff, clock, 0.5) for _ in range(4)] == [0, 0.1, 0.2, 0.4]
    assert _live(backoff, clock, 30) == 0
    assert _live(backoff, clock, 0.5) == 0.1


def test_a_delay_does_not_double_after_a_life_of_ten_times_as_long():
    """A process that is killed every few seconds, as in a test of that, is back within a tenth of them."""
    clock = Clock()
    backoff = Backoff(clock)
    assert [_live(backoff, clock, 3) for _ in range(6)] == [0, 0.1, 0.1, 0.1, 0.1, 0.1]
    assert _live(backoff, clock, 0.5) == 0.2


def test_starts_that_fail_in_a_row_exhaust_it():
    backoff = Backoff(Clock())
    for _ in range(MAX_FAILED_STARTS - 1):
        backoff.start_failed()
        assert not backoff.is_exhausted
        backoff.next_delay_s()
    backoff.ready()
    for _ in range(MAX_FAILED_STARTS - 1):
        backoff.start_failed()
    assert not backoff.is_exhausted
    backoff.start_failed()
    assert backoff.is_exhausted
