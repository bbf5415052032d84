"""Writes docs/metrics.md, the list of all metrics, from their table: `python -P tools/metrics_reference.py`.

A test compares the file with what this makes.
"""

from __future__ import annotations

from pathlib import Path

from quire.metrics import GATEWAY_METRICS, SCHEDULER_METRICS, SETUP_METRICS, Metric

PATH = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"

_HEAD = """\
# Metrics

`GET /metrics` on any gateway, without a key, in Prometheus' text format or OpenMetrics. This list is made by
`tools/metrics_reference.py`; [observability.md](observability.md) says where the figures come from.

All names begin with `quire:`. Counters end in `_total`; histograms have `_bucket`, `_sum` and `_count`. Every series
has the labels `model_name` and `engine` (always `0`: one scheduler), and those named below. A metric marked *vLLM* has
the name, labels, buckets and meaning that it has in vLLM (V1); with `--metrics-alias vllm` it comes a second time as
`vllm:…`, and under names that older versions of vLLM gave it.

Where a request has several continuations (`n`), vLLM counts each as a request. Here `request_success`,
`request_generation_tokens` and the sequences that run or wait are counted by continuation, all else by prompt. Lengths
and durations are of requests that were answered in full; an embedding has no lengths of outputs.

Figures by tenant are shown to operators only (everybody on a server without keys), for the first 64 tenants by name and
for the rest as `other`. Requests without a tenant's name are in none of them.

All counters begin at zero together, when the scheduler starts. A gateway reports once a second and when it is asked
itself; one that is killed takes at most the last second along.

`promtool check metrics` complains of the colon in all names, and of the `_total` of the histogram
`iteration_tokens_total`: both are vLLM's. It finds nothing else.
"""


def reference() -> str:
    """The whole page."""
    parts = [
        _HEAD,
        _section("Counted by the scheduler", SCHEDULER_METRICS),
        _section("Counted by gateways", GATEWAY_METRICS),
        _section("The set-up", SETUP_METRICS),
    ]
    return "\n".join(parts)


def _section(title: str, metrics: tuple[Metric, ...]) -> str:
    lines = [f"## {title}", "", "| name | type | meaning | labels | buckets | vLLM |", "|---|---|---|---|---|---|"]
    return "\n".join([*lines, *map(_row, metrics), ""])


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    vllms = "yes" if metric.is_vllms else ""
    if metric.former_names:
        vllms += ", was " + ", ".join(f"`{name}`" for name in metric.former_names)
    return f"| `{metric.name}` | {metric.kind} | {metric.help} | {labels} | {_buckets(metric)} | {vllms} |"


def _buckets(metric: Metric) -> str:
    if metric.kind != "histogram":
        return ""
    if metric.buckets is None:
        return "1, 2, 5, 10, … up to the context"
    first, second, *_, last = (f"{bound:g}" for bound in metric.buckets)
    return f"{first}, {second}, … {last}"


if __name__ == "__main__":
    PATH.write_text(reference())
