"""A picture of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quire.bench.plot import open_pyplot, save_figure
from quire.bench.statistics import MS_PER_S

_SIDES = {"hf": ("Hugging Face generate", "#c8553d"), "quire": ("Quire", "#2a9d6f")}


def plot_comparison(result: Mapping[str, Any], path: Path) -> None:
    """Draws throughput, latency and the ratios of both against users into a .png or .svg. Raises OSError."""
    pyplot = open_pyplot()
    rows = result["summary"]
    users = [row["users"] for row in rows]
    figure, (throughput, latency, ratio) = pyplot.subplots(1, 3, figsize=(14, 4.5), layout="constrained")
    figure.suptitle(f"{result['model']}, {result['output_len']} tokens each, generate: {result['hf_mode']}")
    for side, (name, colour) in _SIDES.items():
        tokens = [row[side]["output_throughput"] for row in rows]
        throughput.plot(users, tokens, "o-", color=colour, label=name)
        for figure_name, style in (("p50_e2el_ms", "o-"), ("p95_e2el_ms", "^--")):
            seconds = [row[side][figure_name] / MS_PER_S for row in rows]
            latency.plot(users, seconds, style, color=colour, label=f"{name}, {figure_name[:3]}")
    throughput.set(ylabel="output tokens/s", ylim=(0, None))
    latency.set(ylabel="seconds to the end of an answer", yscale="log")
    ratio.plot(users, [row["ratio"]["output_throughput"] for row in rows], "o-", label="tokens/s")
    ratio.plot(users, [row["ratio"]["p50_e2el"] for row in rows], "s-", label="latency, p50")
    ratio.axhline(1, color="grey", linewidth=1)
    ratio.set(ylabel="how many times better Quire is", ylim=(0, None))
    for axes in (throughput, latency, ratio):
        axes.set(xlabel="users")
        axes.set_xticks(users)
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, path)
