"""vLLM's metrics beside Quire's, from the table in quire/metrics.py."""

from __future__ import annotations

from quire.metrics import METRICS, Metric


def render() -> str:
    """A row per metric that both have, then what only Quire has."""
    rows = ["| vLLM | Quire | kind |", "|---|---|---|"]
    shared = [metric for metric in METRICS.values() if metric.is_vllms]
    rows += [f"| `vllm:{_name(metric)}` | `quire:{_name(metric)}` | {_kind(metric)} |" for metric in shared]
    own = ", ".join(f"`quire:{_name(metric)}`" for metric in METRICS.values() if not metric.is_vllms)
    return "\n".join(rows) + f"\n\nOnly Quire has {own}."


def _name(metric: Metric) -> str:
    return metric.name + ("_total" if metric.kind == "counter" else "")


def _kind(metric: Metric) -> str:
    labels = f" by {', '.join(f'`{label}`' for label in metric.labels)}" if metric.labels else ""
    return metric.kind + labels
