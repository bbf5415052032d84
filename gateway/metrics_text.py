"""The figures of a server in the text formats of Prometheus and OpenMetrics."""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from quire.internal.v1 import metrics_pb2
from quire.metrics import METRICS
from quire.metrics import Metric as Description

PREFIX: Final = "quire:"
VLLMS_PREFIX: Final = "vllm:"
# vLLM numbers its engine cores; a server of ours has one scheduler.
_ENGINE: Final = "0"
_COMMON_LABELS: Final = ("model_name", "engine")


class TextFormat(enum.Enum):
    """A format, by the content type of an answer in it."""

    PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

    @classmethod
    def of(cls, accept: str) -> TextFormat:
        """OpenMetrics for whoever names it in an Accept header, in the version that there is, or in none."""
        for accepted in accept.split(","):
            media_type, *parameters = (part.strip() for part in accepted.split(";"))
            versions = [entry for entry in parameters if entry.startswith("version=")]
            if media_type == "application/openmetrics-text" and versions in ([], ["version=1.0.0"]):
                return cls.OPENMETRICS
        return cls.PROMETHEUS

    def encode(self, registry: CollectorRegistry) -> bytes:
        """The text. Names keep their colons, which prometheus_client's own negotiation loses (its issue 1177)."""
        if self is TextFormat.OPENMETRICS:
            text: bytes = openmetrics.generate_latest(  # type: ignore[no-untyped-call]
                registry, escaping=openmetrics.ALLOWUTF8
            )
            return text
        return exposition.generate_latest(registry, escaping=openmetrics.ALLOWUTF8)


class MetricsText:
    """Writes figures under the names of the table in quire/metrics.py."""

    def __init__(self, model_name: str, max_model_len: int, *, with_vllms_names: bool) -> None:
        """`with_vllms_names`: what vLLM has comes a second time, with vLLM's prefix."""
        self._common = (model_name, _ENGINE)
        self._max_model_len = max_model_len
        self._with_vllms_names = with_vllms_names

    def write(self, values: metrics_pb2.MetricValues, format_: TextFormat) -> bytes:
        """The text; takes some milliseconds."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Families(list(self._families(values))))
        return format_.encode(registry)

    def _families(self, values: metrics_pb2.MetricValues) -> Iterator[Metric]:
        numbers: defaultdict[str, list[metrics_pb2.MetricNumber]] = defaultdict(list)
        for number in values.numbers:
            numbers[number.name].append(number)
        histograms = {histogram.name: histogram for histogram in values.histograms}
        for metric in METRICS.values():
            for name in self._names(metric):
                if metric.name in numbers:
                    yield self._number_family(metric, name, numbers[metric.name])
                elif metric.name in histograms:
                    yield self._histogram_family(metric, name, histograms[metric.name])

    def _names(self, metric: Description) -> Iterator[str]:
        yield PREFIX + metric.name
        if self._with_vllms_names and metric.is_vllms:
            for name in (metric.name, *metric.former_names):
                yield VLLMS_PREFIX + name

    def _number_family(self, metric: Description, name: str, numbers: Iterable[metrics_pb2.MetricNumber]) -> Metric:
        make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = make(name, metric.help, labels=[*_COMMON_LABELS, *metric.labels])
        for number in numbers:
            family.add_metric([*self._common, *number.labels], number.value)
        return family

    def _histogram_family(self, metric: Description, name: str, histogram: metrics_pb2.MetricHistogram) -> Metric:
        family = HistogramMetricFamily(name, metric.help, labels=_COMMON_LABELS)
        bounds = [*map(floatToGoString, metric.bounds(self._max_model_len)), "+Inf"]
        buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
        family.add_metric(self._common, buckets, histogram.sum)
        return family


class _Families(Collector):
    """Gives what it was given."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        """See Collector."""
        return self._families
