"""Figures of a run, against values worked out by hand."""

from __future__ import annotations

import pytest

from quire.bench.statistics import details, max_concurrent, summarise
from quire.bench.timeline import Timeline

# Sent at 0 and 1; the second's first message holds two of its three tokens.
FIRST = Timeline(sent=10.0, prompt_len=4, arrived=[10.5, 10.6, 10.8], output_len=3, ended=10.8)
SECOND = Timeline(sent=11.0, prompt_len=6, arrived=[11.1, 12.1], output_len=3, cached_len=2, ended=12.1)
FAILED = Timeline(sent=10.0, prompt_len=5, error="HTTP 500")


def test_times_of_one_request():
    assert FIRST.ttft == pytest.approx(0.5)
    assert FIRST.e2el == pytest.approx(0.8)
    assert FIRST.itls == pytest.approx([0.1, 0.2])
    assert FIRST.tpot == pytest.approx(0.15)


def test_tokens_are_counted_and_not_messages():
    assert SECOND.tpot == pytest.approx(0.5)
    assert SECOND.itls == pytest.approx([1.0])


def test_an_answer_of_one_token_has_no_time_per_token():
    assert Timeline(sent=0, prompt_len=1, arrived=[1.0], output_len=1, ended=1.0).tpot is None


def test_totals_and_rates():
    result = summarise([FIRST, FAILED, SECOND], ("ttft",), (99.0,))
    assert (result["completed"], result["failed"]) == (2, 1)
    assert result["duration"] == pytest.approx(2.1)
    assert result["total_input_tokens"] == 10
    assert result["total_output_tokens"] == 6
    assert result["total_cached_tokens"] == 2
    assert result["request_throughput"] == pytest.approx(2 / 2.1)
    assert result["output_throughput"] == pytest.approx(6 / 2.1)
    assert result["total_token_throughput"] == pytest.approx(16 / 2.1)


def test_distributions_are_in_milliseconds():
    result = summarise([FIRST, SECOND], ("ttft", "itl", "e2el"), (50.0, 99.5))
    assert result["mean_ttft_ms"] == pytest.approx(300)
    assert result["p50_ttft_ms"] == result["median_ttft_ms"] == pytest.approx(300)
    assert result["std_ttft_ms"] == pytest.approx(200)
    assert result["median_itl_ms"] == pytest.approx(200)
    assert result["p99.5_e2el_ms"] == pytest.approx(1100, rel=0.01)


def test_a_run_without_answers_has_the_same_keys():
    nothing = summarise([FAILED], ("ttft", "tpot", "itl", "e2el"), (99.0,))
    assert nothing.keys() == summarise([FIRST], ("ttft", "tpot", "itl", "e2el"), (99.0,)).keys()
    assert nothing["output_throughput"] == 0


def test_most_requests_in_flight():
    assert max_concurrent([FIRST, SECOND]) == 1
    overlapping = Timeline(sent=10.7, prompt_len=1, arrived=[11.5], output_len=1, ended=11.5)
    assert max_concurrent([FIRST, overlapping]) == 2


def test_details_keep_the_order_and_the_errors():
    detailed = details([FIRST, FAILED, SECOND])
    assert detailed["start_times"] == pytest.approx([0.0, 0.0, 1.0])
    assert detailed["output_lens"] == [3, 0, 3]
    assert detailed["errors"] == ["", "HTTP 500", ""]
    assert detailed["ttfts"] == pytest.approx([0.5, 0.0, 0.1])
