"""The store that sums what gateways report."""

from __future__ import annotations

import pytest

from quire.internal.v1 import metrics_pb2
from quire.metrics import METRICS
from quire.scheduler.metrics import MAX_TENANTS, MetricStore
from quire.scheduler.step_loop import StepRecord

MAX_MODEL_LEN = 64
NUM_TTFT_BUCKETS = len(METRICS["time_to_first_token_seconds"].bounds(MAX_MODEL_LEN)) + 1


def report(
    gateway: str, number: int, tokens: int = 0, first_tokens: int = 0, **counters
) -> metrics_pb2.ReportMetricsRequest:
    message = metrics_pb2.ReportMetricsRequest(gateway_id=gateway, number=number)
    if tokens:
        message.increments.numbers.add(name="generation_tokens", value=tokens)
    if first_tokens:
        counts = [first_tokens] + [0] * (NUM_TTFT_BUCKETS - 1)
        message.increments.histograms.add(name="time_to_first_token_seconds", counts=counts, sum=first_tokens / 1000)
    return message


@pytest.fixture
def store() -> MetricStore:
    return MetricStore(MAX_MODEL_LEN)


def test_reports_of_several_gateways_add_up(store):
    for number, gateway in [(1, "a"), (1, "b"), (2, "a")]:
        store.add(report(gateway, number, tokens=10, first_tokens=2))
    assert store.counter("generation_tokens") == 30
    histogram = store.histogram("time_to_first_token_seconds")
    assert (histogram.count, histogram.counts[0]) == (6, 6)
    assert histogram.sum == pytest.approx(0.006)


def test_a_report_that_comes_again_counts_once(store):
    for message in [report("a", 1, 5, 1), report("a", 1, 5, 1), report("a", 2, 7), report("a", 1, 5, 1)]:
        store.add(message)
    assert store.counter("generation_tokens") == 12
    assert store.histogram("time_to_first_token_seconds").count == 1


def test_a_new_store_takes_a_gateway_up_where_it_is(store):
    """As after the scheduler's restart: numbers go on, sums begin at zero."""
    store.add(report("a", 41, tokens=3))
    assert store.counter("generation_tokens") == 3


def test_known_series_are_there_from_the_start(store):
    values = store.values(with_tenants=False)
    series = {(number.name, *number.labels) for number in values.numbers}
    assert ("generation_tokens",) in series
    assert {("request_success", reason) for reason in ("stop", "length", "abort", "error")} <= series
    assert all(number.value == 0 for number in values.numbers)


def tenants(store: MetricStore, name: str = "tenant_prompt_tokens") -> dict[str, float]:
    return {number.labels[0]: number.value for number in store.values(with_tenants=True).numbers if number.name == name}


def test_tenants_beyond_the_bound_are_one(store):
    for number in range(MAX_TENANTS + 10):
        message = metrics_pb2.ReportMetricsRequest(gateway_id="a", number=number + 1)
        message.increments.numbers.add(name="tenant_prompt_tokens", labels=[f"t{number}"], value=2)
        store.add(message)
    shown = tenants(store)
    assert len(shown) == MAX_TENANTS + 1
    assert shown["t0"] == 2
    assert shown["other"] == 20
    assert not any(number.name.startswith("tenant_") for number in store.values(with_tenants=False).numbers)


def test_what_another_version_reports_is_left_out(store, caplog):
    message = report("a", 1, tokens=4)
    message.increments.numbers.add(name="unheard_of", value=1)
    message.increments.numbers.add(name="request_success", value=1)  # without its label
    message.increments.numbers.add(name="num_requests_running", value=1)  # a gauge
    message.increments.histograms.add(name="time_to_first_token_seconds", counts=[1, 2], sum=1)
    message.increments.histograms.add(name="unheard_of", counts=[1, 2], sum=1)
    store.add(message)
    assert store.counter("generation_tokens") == 4
    assert store.counter("request_success") == 0
    assert store.histogram("time_to_first_token_seconds").count == 0
    assert len(caplog.records) == 5


def test_steps_begin_when_the_one_before_is_done(store):
    second = 10**9
    store.observe_step(StepRecord(1, 0, 30, 2, plan_sent_ns=1 * second, result_received_ns=4 * second))
    # Sent while the first was computed.
    store.observe_step(StepRecord(2, 0, 0, 3, plan_sent_ns=2 * second, result_received_ns=5 * second))
    # Another executor's.
    store.observe_step(StepRecord(1, 1, 0, 1, plan_sent_ns=2 * second, result_received_ns=4 * second))
    assert store.histogram("step_duration_seconds").sum == pytest.approx(3 + 1 + 2)
    assert store.histogram("iteration_tokens_total").sum == 36
