"""When requests are sent."""

from __future__ import annotations

import math

import numpy as np


def arrival_times(num_requests: int, request_rate: float, burstiness: float, seed: int) -> list[float]:
    """Seconds after the start at which each request is sent; all zero for an infinite rate.

    The gaps are gamma-distributed with shape `burstiness` and mean 1 / request_rate: shape 1 is a Poisson process,
    a smaller shape comes in bursts, a larger one approaches even spacing. The times are scaled so that the last
    request comes when its expected time is: otherwise the rate of a short run would differ from the one asked for.
    """
    if math.isinf(request_rate):
        return [0.0] * num_requests
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.gamma(burstiness, 1 / (request_rate * burstiness), size=num_requests))
    times *= num_requests / request_rate / times[-1]
    result: list[float] = times.tolist()
    return result
