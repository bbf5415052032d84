"""What gateway and scheduler share of traces, without OpenTelemetry, which is imported only where it is asked for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from quire.errors import StartupError

if TYPE_CHECKING:
    from quire.otlp import TraceExport

# A reading of two clocks that took longer (nanoseconds) was interrupted, and is repeated so often.
_MAX_READING_NS: Final = 20_000
_MAX_READINGS: Final = 5


def open_export(endpoint: str) -> TraceExport:
    """The way to the collector of --otlp-traces-endpoint. Raises StartupError where OpenTelemetry is not installed."""
    try:
        from quire.otlp import TraceExport
    except ImportError as error:
        message = f"--otlp-traces-endpoint needs OpenTelemetry ({error}): pip install 'quire[otel]'"
        raise StartupError(message, field="otlp_traces_endpoint") from error
    return TraceExport(endpoint)


def wall_clock_offset_ns() -> int:
    """What makes a time since the epoch of a time of this host's CLOCK_MONOTONIC."""
    best, shortest = 0, None
    for _ in range(_MAX_READINGS):
        before = time.monotonic_ns()
        now = time.time_ns()
        took = time.monotonic_ns() - before
        if shortest is None or took < shortest:
            best, shortest = now - before - took // 2, took
        if took < _MAX_READING_NS:
            break
    return best
