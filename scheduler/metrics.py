"""The figures of the whole server: what gateways report, summed, and what the scheduler counts itself."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from typing import Final

from quire.internal.v1 import metrics_pb2
from quire.metrics import GATEWAY_METRICS, METRICS, SCHEDULER_METRICS, TENANT_METRICS, HistogramCounts
from quire.scheduler.step_loop import StepRecord

logger = logging.getLogger(__name__)

# Tenants that are shown by name; the rest is `other`, so that nobody's certificates make labels without bound.
MAX_TENANTS: Final = 64
OTHER_TENANTS: Final = "other"
# Gateways whose latest report is known; one that is forgotten has been silent longest.
_MAX_GATEWAYS: Final = 1024


class MetricStore:
    """Sums since the scheduler started."""

    def __init__(self, max_model_len: int) -> None:
        # Seconds since the epoch.
        self.started_s = time.time()
        self._histograms = {
            metric.name: HistogramCounts(metric.bounds(max_model_len))
            for metric in (*SCHEDULER_METRICS, *GATEWAY_METRICS)
            if metric.kind == "histogram"
        }
        # By name and the values of its labels.
        self._counters: dict[tuple[str, ...], float] = {
            (metric.name, *labels): 0.0
            for metric in GATEWAY_METRICS
            if metric.kind == "counter"
            for labels in ([(value,) for value in metric.values] if metric.labels else [()])
        }
        # By gateway: the number of its latest report.
        self._reports: OrderedDict[str, int] = OrderedDict()
        # In the order of their first requests.
        self._tenants: dict[str, None] = {}
        # By executor: when the result of its latest step came, CLOCK_MONOTONIC nanoseconds.
        self._latest_result_ns: dict[int, int] = {}
        self._iteration_tokens = self._histograms["iteration_tokens_total"]
        self._step_duration = self._histograms["step_duration_seconds"]

    def histogram(self, name: str) -> HistogramCounts:
        """The counts of a histogram of the table in quire/metrics.py; they go on counting."""
        return self._histograms[name]

    def counter(self, name: str, *labels: str) -> float:
        """The sum of a counter that gateways report, over all labels if none are given."""
        if labels:
            return self._counters.get((name, *labels), 0.0)
        return sum(value for (own, *_), value in self._counters.items() if own == name)

    @property
    def tenants(self) -> list[str]:
        """Those that are shown by name."""
        return list(self._tenants)

    def observe_step(self, step: StepRecord) -> None:
        """An executor has computed a step. It began when the plan was there and the step before it was done."""
        began_ns = max(step.plan_sent_ns, self._latest_result_ns.get(step.executor, 0))
        self._latest_result_ns[step.executor] = step.result_received_ns
        self._iteration_tokens.observe(step.num_prefill_tokens + step.num_decode_tokens)
        self._step_duration.observe((step.result_received_ns - began_ns) / 1e9)

    def add(self, report: metrics_pb2.ReportMetricsRequest) -> None:
        """Takes in what a gateway has counted, unless it has done so already."""
        if report.number <= self._reports.get(report.gateway_id, 0):
            return
        self._reports[report.gateway_id] = report.number
        self._reports.move_to_end(report.gateway_id)
        if len(self._reports) > _MAX_GATEWAYS:
            self._reports.popitem(last=False)
        for number in report.increments.numbers:
            self._add_number(number)
        for histogram in report.increments.histograms:
            self._add_histogram(histogram)

    def values(self, *, with_tenants: bool) -> metrics_pb2.MetricValues:
        """All sums."""
        values = metrics_pb2.MetricValues()
        for (name, *labels), value in self._counters.items():
            if with_tenants or name not in TENANT_METRICS:
                values.numbers.add(name=name, labels=labels, value=value)
        for name, histogram in self._histograms.items():
            values.histograms.add(name=name, counts=histogram.counts, sum=histogram.sum)
        return values

    def tenant_label(self, name: str) -> str:
        """What a tenant is shown as."""
        if name not in self._tenants:
            if len(self._tenants) >= MAX_TENANTS:
                return OTHER_TENANTS
            self._tenants[name] = None
        return name

    def _add_number(self, number: metrics_pb2.MetricNumber) -> None:
        metric = METRICS.get(number.name)
        if metric is None or metric.kind != "counter" or len(metric.labels) != len(number.labels):
            # Of another version, during an upgrade.
            logger.warning("a gateway reports %s, which is no counter of this version", number.name)
            return
        labels = list(number.labels)
        if number.name in TENANT_METRICS:
            place = metric.labels.index("tenant")
            labels[place] = self.tenant_label(labels[place])
        key = (number.name, *labels)
        self._counters[key] = self._counters.get(key, 0.0) + number.value

    def _add_histogram(self, reported: metrics_pb2.MetricHistogram) -> None:
        histogram = self._histograms.get(reported.name)
        if histogram is None or len(histogram.counts) != len(reported.counts):
            logger.warning("a gateway reports %s, which is no histogram of this version", reported.name)
            return
        histogram.add(reported.counts, reported.sum)
