"""Which processes count as hung."""

from __future__ import annotations

from quire.supervision.watchdog import INTERVAL_S, Watchdog

TIMEOUT_S = 5.0


class _Watched:
    """A watchdog that looks when it should, at counts that the test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.watchdog: Watchdog[str] = Watchdog(TIMEOUT_S, lambda: self.now_s)

    def pass_time(self, seconds: float, *, moving: dict[str, int], still: dict[str, int]) -> list[str]:
        """Looks as time goes by; the hung ones at its end. Counts in `moving` move."""
        hung: list[str] = []
        for _ in range(round(seconds / INTERVAL_S)):
            self.now_s += INTERVAL_S
            for name in moving:
                moving[name] += 1
            hung = self.watchdog.look({**moving, **still})
        return hung


def test_a_count_that_stands_still_is_found_and_others_are_not():
    watched = _Watched()
    moving, still = {"a": 1}, {"b": 7}
    assert watched.pass_time(TIMEOUT_S, moving=moving, still=still) == []
    assert watched.pass_time(INTERVAL_S, moving=moving, still=still) == ["b"]


def test_a_count_that_moves_at_the_last_moment_is_well():
    watched = _Watched()
    counts = {"a": 1}
    for _ in range(3):
        assert watched.pass_time(TIMEOUT_S, moving={}, still=counts) == []
        counts["a"] += 1


def test_time_in_which_the_watchdog_was_stopped_does_not_count():
    watched = _Watched()
    counts = {"a": 1}
    assert watched.pass_time(TIMEOUT_S - 1, moving={}, still=counts) == []
    watched.now_s += 1000
    assert watched.watchdog.look(counts) == []
    assert watched.pass_time(TIMEOUT_S - INTERVAL_S, moving={}, still=counts) == []
    assert watched.pass_time(INTERVAL_S, moving={}, still=counts) == ["a"]


def test_a_process_is_watched_from_when_it_is_first_seen():
    watched = _Watched()
    watched.pass_time(10 * TIMEOUT_S, moving={"a": 0}, still={})
    assert watched.pass_time(TIMEOUT_S, moving={"a": 99}, still={"b": 0}) == []


def test_what_was_gone_begins_anew():
    """As a process that ends and another in its place."""
    watched = _Watched()
    watched.pass_time(TIMEOUT_S, moving={}, still={"a": 3})
    watched.pass_time(INTERVAL_S, moving={}, still={})
    assert watched.pass_time(TIMEOUT_S, moving={}, still={"a": 3}) == []
