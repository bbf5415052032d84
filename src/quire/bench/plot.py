"""A picture of a run. matplotlib is an extra and imported here only."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from quire.bench.statistics import MS_PER_S
from quire.bench.timeline import Timeline
from quire.errors import StartupError


def require_matplotlib(flag: str = "--plot") -> None:
    """Raises StartupError, which says how to get it, before a run whose picture could not be drawn."""
    if find_spec("matplotlib") is None:
        raise StartupError(f"{flag} needs matplotlib: pip install 'quire[bench]'", field=flag[2:])


def plot_run(timelines: Sequence[Timeline], path: Path, *, title: str) -> None:
    """Draws the distributions of latency, and load and throughput over time, into a .png or .svg."""
    pyplot = open_pyplot()
    done = [timeline for timeline in timelines if timeline.succeeded]
    figure, ((first, gaps), (flight, tokens)) = pyplot.subplots(2, 2, figsize=(11, 7), layout="constrained")
    figure.suptitle(title)
    _distribution(first, [timeline.ttft for timeline in done], "time to first token (ms)")
    _distribution(gaps, [gap for timeline in done for gap in timeline.itls], "inter-token latency (ms)")
    start = min(timeline.sent for timeline in done)
    _in_flight(flight, done, start)
    _throughput(tokens, done, start)
    save_figure(figure, path)


def open_pyplot() -> Any:
    """matplotlib.pyplot, which draws into files and opens no window."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure: Any, path: Path) -> None:
    """Writes a picture, makes its folder if need be, and forgets it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    open_pyplot().close(figure)


def _distribution(axes: Any, seconds: Sequence[float], label: str) -> None:
    """The share of values up to each; the axis is logarithmic, since tails are long."""
    axes.ecdf(np.asarray(seconds or [0.0]) * MS_PER_S)
    axes.set(xlabel=label, ylabel="share up to it", xscale="log")
    axes.grid(alpha=0.3)


def _in_flight(axes: Any, done: Sequence[Timeline], start: float) -> None:
    changes = sorted([(timeline.sent, 1) for timeline in done] + [(timeline.ended, -1) for timeline in done])
    axes.step([at - start for at, _ in changes], np.cumsum([change for _, change in changes]), where="post")
    axes.set(xlabel="seconds", ylabel="requests in flight")
    axes.grid(alpha=0.3)


def _throughput(axes: Any, done: Sequence[Timeline], start: float) -> None:
    """Output tokens/s; the tokens of an answer are spread evenly over its messages."""
    times = np.concatenate([timeline.arrived for timeline in done]) - start
    weights = np.concatenate(
        [np.full(len(timeline.arrived), timeline.output_len / len(timeline.arrived)) for timeline in done]
    )
    counts, edges = np.histogram(times, bins=min(60, max(1, len(times))), weights=weights)
    axes.stairs(counts / np.diff(edges), edges, fill=True)
    axes.set(xlabel="seconds", ylabel="output tokens/s")
    axes.grid(alpha=0.3)
