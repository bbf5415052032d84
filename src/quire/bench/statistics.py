"""From timelines to figures, under the keys of `vllm bench serve`'s result file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from quire.bench.timeline import Timeline

MS_PER_S = 1000.0


def summarise(timelines: Sequence[Timeline], metrics: Sequence[str], percentiles: Sequence[float]) -> dict[str, Any]:
    """Throughput over the whole run, and mean, median, standard deviation and percentiles of each metric in ms.

    The run lasts from the first request sent to the last answer's end. Failed requests count in `failed` alone.
    """
    done = [timeline for timeline in timelines if timeline.succeeded]
    duration = _duration(done)
    input_tokens = sum(timeline.prompt_len for timeline in done)
    output_tokens = sum(timeline.output_len for timeline in done)
    result: dict[str, Any] = {
        "duration": duration,
        "completed": len(done),
        "failed": len(timelines) - len(done),
        "total_input_tokens": input_tokens,
        "total_output_tokens": output_tokens,
        "total_cached_tokens": sum(timeline.cached_len for timeline in done),
        "request_throughput": _rate(len(done), duration),
        "output_throughput": _rate(output_tokens, duration),
        "total_token_throughput": _rate(input_tokens + output_tokens, duration),
        "max_concurrent_requests": max_concurrent(done),
    }
    for metric in metrics:
        result |= _distribution(metric, _values(metric, done), percentiles)
    return result


def details(timelines: Sequence[Timeline]) -> dict[str, Any]:
    """Every request's own figures; times in seconds, `start_times` after the first request."""
    first = min(timeline.sent for timeline in timelines)
    return {
        "input_lens": [timeline.prompt_len for timeline in timelines],
        "output_lens": [timeline.output_len for timeline in timelines],
        "start_times": [timeline.sent - first for timeline in timelines],
        "ttfts": [timeline.ttft if timeline.succeeded else 0.0 for timeline in timelines],
        "itls": [timeline.itls for timeline in timelines],
        "errors": [timeline.error for timeline in timelines],
    }


def max_concurrent(done: Sequence[Timeline]) -> int:
    """The most requests in flight at any time."""
    changes = sorted([(timeline.sent, 1) for timeline in done] + [(timeline.ended, -1) for timeline in done])
    return int(np.cumsum([change for _, change in changes]).max()) if changes else 0


def _duration(done: Sequence[Timeline]) -> float:
    return max(timeline.ended for timeline in done) - min(timeline.sent for timeline in done) if done else 0.0


def _rate(amount: int, duration: float) -> float:
    return amount / duration if duration else 0.0


def _values(metric: str, done: Sequence[Timeline]) -> list[float]:
    if metric == "itl":
        return [gap for timeline in done for gap in timeline.itls]
    values = (getattr(timeline, metric) for timeline in done)
    return [value for value in values if value is not None]


def _distribution(metric: str, seconds: Sequence[float], percentiles: Sequence[float]) -> dict[str, float]:
    """Zeros where there is nothing: a result file always has the same keys."""
    ms = np.asarray(seconds or [0.0]) * MS_PER_S
    named = {f"p{percentile:g}_{metric}_ms": float(np.percentile(ms, percentile)) for percentile in percentiles}
    return {
        f"mean_{metric}_ms": float(ms.mean()),
        f"median_{metric}_ms": float(np.median(ms)),
        f"std_{metric}_ms": float(ms.std()),
        **named,
    }
