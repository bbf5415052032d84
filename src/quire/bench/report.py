"""Results as tables for the terminal, and as JSON files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

_NAMES = {
    "ttft": "Time to first token",
    "tpot": "Time per output token, after the first",
    "itl": "Inter-token latency",
    "e2el": "End-to-end latency",
}

_TOTALS = {
    "Requests completed": ("completed", "d"),
    "Requests failed": ("failed", "d"),
    "Most requests in flight": ("max_concurrent_requests", "d"),
    "Duration (s)": ("duration", ".2f"),
    "Input tokens": ("total_input_tokens", "d"),
    "of them from the prefix cache": ("total_cached_tokens", "d"),
    "Output tokens": ("total_output_tokens", "d"),
    "Requests/s": ("request_throughput", ".2f"),
    "Output tokens/s": ("output_throughput", ".2f"),
    "All tokens/s": ("total_token_throughput", ".2f"),
}


def serving_table(result: Mapping[str, Any], metrics: Sequence[str], percentiles: Sequence[float]) -> Table:
    """The result of `quire bench serve`."""
    table = Table(title=f"{result['model_id']} over {result['backend']}", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for label, (key, form) in _TOTALS.items():
        table.add_row(label, format(result[key], form))
    for metric in metrics:
        table.add_section()
        table.add_row(f"[bold]{_NAMES[metric]} (ms)", "")
        for statistic in ("mean", "median", *(f"p{percentile:g}" for percentile in percentiles)):
            table.add_row(statistic, f"{result[f'{statistic}_{metric}_ms']:.2f}")
    return table


def figures_table(title: str, figures: Mapping[str, float]) -> Table:
    """Named figures, one to a row."""
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:,.4g}" if value < 1 else f"{value:,.2f}")
    return table


def save_json(path: Path, result: Mapping[str, Any]) -> None:
    """Writes a result, and makes its folder if need be. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
