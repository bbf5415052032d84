"""Rates and quantiles of the last seconds."""

from __future__ import annotations

import pytest

from quire.top.window import Window, quantiles
from quire.v1 import monitor_pb2


def state(
    second: float, *, tokens: int = 0, counts: tuple[int, ...] = (0, 0, 0), start: int = 1
) -> monitor_pb2.ServerState:
    return monitor_pb2.ServerState(
        loads=monitor_pb2.Loads(time_ns=int(second * 1e9)),
        num_generation_tokens=tokens,
        time_to_first_token=monitor_pb2.Histogram(bounds=[1.0, 2.0], counts=counts),
        scheduler_start_ns=start,
    )


def tokens(of: monitor_pb2.ServerState) -> int:
    return of.num_generation_tokens


def ttft(of: monitor_pb2.ServerState) -> monitor_pb2.Histogram:
    return of.time_to_first_token


def test_rates_are_those_of_the_window() -> None:
    window = Window(length_s=10)
    assert window.rate(tokens) is None
    window.add(state(0, tokens=1000))
    assert window.rate(tokens) is None, "one state has no rate"
    for second in range(1, 31):
        window.add(state(second, tokens=1000 + 5 * second))
    assert window.rate(tokens) == pytest.approx(5)
    assert window.seconds == pytest.approx(10)
    for second in range(31, 42):
        window.add(state(second, tokens=1150))
    assert window.rate(tokens) == 0, "what is older than the window counts no longer"


def test_counters_that_begin_again_begin_a_new_window() -> None:
    window = Window()
    window.add(state(0, tokens=1000))
    window.add(state(1, tokens=1010))
    window.add(state(5, tokens=0, start=2))
    assert window.rate(tokens) is None
    window.add(state(6, tokens=7, start=2))
    assert window.rate(tokens) == pytest.approx(7)


def test_shares() -> None:
    window = Window()
    window.add(state(0))
    window.add(state(1, tokens=4))
    assert window.share(tokens, lambda s: 2 * tokens(s)) == pytest.approx(0.5)
    assert window.share(tokens, lambda s: 0) is None


def test_quantiles_are_those_of_the_window() -> None:
    window = Window()
    assert window.quantiles(ttft, 0.5) is None
    window.add(state(0, counts=(100, 0, 0)))
    assert window.quantiles(ttft, 0.5) is None, "nothing was observed since the first look"
    window.add(state(1, counts=(100, 4, 0)))
    assert window.quantiles(ttft, 0.0, 0.5, 1.0) == pytest.approx([1.0, 1.5, 2.0])


@pytest.mark.parametrize(
    ("counts", "expected"),
    [((10, 0, 0), [0.5, 0.95]), ((5, 5, 0), [1.0, 1.9]), ((0, 0, 3), [2.0, 2.0]), ((0, 0, 0), None)],
)
def test_quantiles_of_a_histogram(counts: tuple[int, ...], expected: list[float] | None) -> None:
    found = quantiles([1.0, 2.0], counts, 0.5, 0.95)
    assert found == (None if expected is None else pytest.approx(expected))
