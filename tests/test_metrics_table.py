"""The table of metrics: what it promises of vLLM, and the page that is made of it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from quire.metrics import METRICS, HistogramCounts, lengths_up_to

ROOT = Path(__file__).parents[1]

# As vLLM's vllm/v1/metrics/loggers.py has them.
VLLM = {
    "num_requests_running": "gauge",
    "num_requests_waiting": "gauge",
    "kv_cache_usage_perc": "gauge",
    "prefix_cache_queries": "counter",
    "prefix_cache_hits": "counter",
    "external_prefix_cache_queries": "counter",
    "external_prefix_cache_hits": "counter",
    "num_preemptions": "counter",
    "prompt_tokens": "counter",
    "prompt_tokens_by_source": "counter",
    "prompt_tokens_cached": "counter",
    "generation_tokens": "counter",
    "request_success": "counter",
    "cache_config_info": "gauge",
    "request_prompt_tokens": "histogram",
    "request_generation_tokens": "histogram",
    "iteration_tokens_total": "histogram",
    "request_max_num_generation_tokens": "histogram",
    "request_params_n": "histogram",
    "request_params_max_tokens": "histogram",
    "time_to_first_token_seconds": "histogram",
    "inter_token_latency_seconds": "histogram",
    "request_time_per_output_token_seconds": "histogram",
    "e2e_request_latency_seconds": "histogram",
    "request_queue_time_seconds": "histogram",
    "request_inference_time_seconds": "histogram",
    "request_prefill_time_seconds": "histogram",
    "request_decode_time_seconds": "histogram",
    "request_prefill_kv_computed_tokens": "histogram",
}


def test_what_is_said_to_be_vllm_s():
    assert {name: metric.kind for name, metric in METRICS.items() if metric.is_vllms} == VLLM


def test_the_page_is_up_to_date():
    made = runpy.run_path(str(ROOT / "tools" / "metrics_reference.py"))["reference"]()
    assert (ROOT / "docs" / "metrics.md").read_text() == made, "run tools/metrics_reference.py"


def test_every_histogram_has_ascending_bounds():
    for metric in METRICS.values():
        if metric.kind == "histogram":
            bounds = metric.bounds(4096)
            assert bounds == tuple(sorted(set(bounds))) and bounds, metric.name


@pytest.mark.parametrize(
    ("most", "bounds"), [(1, (1,)), (9, (1, 2, 5)), (10, (1, 2, 5, 10)), (400, (1, 2, 5, 10, 20, 50, 100, 200))]
)
def test_lengths_go_up_to_the_context(most, bounds):
    assert lengths_up_to(most) == bounds


def test_a_histogram_counts_at_and_between_bounds():
    histogram = HistogramCounts((1, 2, 5))
    for value in (0, 1, 1.5, 2, 5, 5.1, 100):
        histogram.observe(value)
    assert (histogram.counts, histogram.sum, histogram.count) == ([2, 2, 1, 2], 114.6, 7)
    histogram.add([1, 0, 0, 1], 10)
    assert (histogram.counts, histogram.sum) == ([3, 2, 1, 3], 124.6)
    with pytest.raises(ValueError, match="zip"):
        histogram.add([1], 10)
    histogram.clear()
    assert (histogram.counts, histogram.sum) == ([0, 0, 0, 0], 0)
