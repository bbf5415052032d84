"""Figures as text, a few characters wide."""

from __future__ import annotations

from typing import Final

NOTHING: Final = "–"
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def rate(value: float | None) -> str:
    """Per second."""
    return NOTHING if value is None else f"{value:,.0f}/s" if value >= 10 or not value else f"{value:.1f}/s"


def seconds(value: float) -> str:
    """A latency."""
    if value < 0.001:
        return f"{value * 1e6:.0f} µs"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def latencies(values: list[float] | None) -> str:
    """Median and 95th percentile."""
    return NOTHING if values is None else f"p50 {seconds(values[0])}  p95 {seconds(values[1])}"


def share(value: float | None) -> str:
    """A part of a whole."""
    return NOTHING if value is None else f"{value:.1%}"


def age(value: float) -> str:
    """How long something has gone on."""
    if value < _MINUTE:
        return f"{value:.1f} s"
    if value < _HOUR:
        return f"{value // _MINUTE:.0f}m{value % _MINUTE:02.0f}s"
    if value < _DAY:
        return f"{value // _HOUR:.0f}h{value % _HOUR // _MINUTE:02.0f}m"
    return f"{value // _DAY:.0f}d{value % _DAY // _HOUR:02.0f}h"
