"""Rounds of a comparison as medians and ratios, and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Final

from rich.table import Table

from quire.units import format_bytes

# What is summarised of each side, by the names of statistics.summarise.
FIGURES: Final = (
    "output_throughput",
    "request_throughput",
    "mean_e2el_ms",
    "p50_e2el_ms",
    "p95_e2el_ms",
    "mean_ttft_ms",
    "p50_ttft_ms",
    "peak_memory_bytes",
)


def summarise_rounds(rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each number of users: medians of both sides, and how many times better Quire is.

    A ratio above 1 is in Quire's favour: tokens/s of Quire by those of generate, and times the other way round.
    """
    rows = []
    for users in dict.fromkeys(record["users"] for record in rounds):
        records = [record for record in rounds if record["users"] == users]
        row: dict[str, Any] = {"users": users}
        for side in ("hf", "quire"):
            row[side] = {figure: median(record[side][figure] for record in records) for figure in FIGURES}
        row["ratio"] = {
            "output_throughput": _ratio(records, "output_throughput", over="hf"),
            "p50_e2el": _ratio(records, "p50_e2el_ms", over="quire"),
            "p95_e2el": _ratio(records, "p95_e2el_ms", over="quire"),
            "p50_ttft": _ratio(records, "p50_ttft_ms", over="quire"),
        }
        if not all(record["hf"]["streams"] for record in records):
            row["hf"]["mean_ttft_ms"] = row["hf"]["p50_ttft_ms"] = row["ratio"]["p50_ttft"] = None
        row["texts"] = sum(record["texts"] for record in records)
        row["equal_texts"] = sum(record["equal_texts"] for record in records)
        rows.append(row)
    return rows


def _ratio(records: Sequence[Mapping[str, Any]], figure: str, *, over: str) -> float:
    """The median over rounds of one side's figure by that of the side `over`."""
    other = "quire" if over == "hf" else "hf"
    ratios: list[float] = [record[other][figure] / record[over][figure] for record in records]
    return median(ratios)


def comparison_table(result: Mapping[str, Any]) -> Table:
    """The summary: three rows for each number of users."""
    about = result["hf"]
    table = Table(
        title=f"{result['model']}: Hugging Face generate {about['version']} ({result['hf_mode']}) and Quire, "
        f"{about['dtype']}, {about['threads']} threads, {result['output_len']} tokens each",
        title_justify="left",
    )
    names = ("users", "", "tokens/s", "requests/s", "mean s", "p50 s", "p95 s", "first token s", "memory", "equal")
    for name in names:
        table.add_column(name, justify="left" if not name else "right")
    for row in result["summary"]:
        equal = f"{row['equal_texts']} of {row['texts']}"
        table.add_row(str(row["users"]), "generate", *_cells(row["hf"]), "")
        table.add_row("", "Quire", *_cells(row["quire"]), equal)
        ratio = row["ratio"]
        times = [ratio["output_throughput"], None, None, ratio["p50_e2el"], ratio["p95_e2el"], ratio["p50_ttft"]]
        shown = ["" if value is None else f"× {value:.2f}" for value in times]
        table.add_row("", "[bold]better by", *shown, "", "", end_section=True)
    return table


def _cells(side: Mapping[str, Any]) -> list[str]:
    times = (side[name] for name in ("mean_e2el_ms", "p50_e2el_ms", "p95_e2el_ms", "p50_ttft_ms"))
    return [
        f"{side['output_throughput']:,.1f}",
        f"{side['request_throughput']:.2f}",
        *("–" if ms is None else f"{ms / 1000:.3f}" for ms in times),
        format_bytes(side["peak_memory_bytes"]),
    ]
