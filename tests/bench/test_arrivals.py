"""Arrival times: as many as asked for, at the rate and with the spread asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quire.bench.arrivals import arrival_times


def test_an_infinite_rate_sends_all_at_once():
    assert arrival_times(5, math.inf, 1.0, seed=0) == [0.0] * 5


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 100.0])
def test_times_rise_and_end_where_the_rate_says(burstiness):
    times = arrival_times(1000, 20.0, burstiness, seed=3)
    assert times == sorted(times)
    assert times[-1] == pytest.approx(1000 / 20.0)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 100.0])
def test_gaps_spread_as_a_gamma_distribution_of_that_shape(burstiness):
    """Its coefficient of variation is 1 / sqrt(shape)."""
    gaps = np.diff(arrival_times(20_000, 20.0, burstiness, seed=3))
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.1)


def test_the_seed_decides():
    assert arrival_times(9, 2.0, 1.0, seed=1) == arrival_times(9, 2.0, 1.0, seed=1)
    assert arrival_times(9, 2.0, 1.0, seed=1) != arrival_times(9, 2.0, 1.0, seed=2)
