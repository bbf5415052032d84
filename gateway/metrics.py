"""What one gateway counts of its requests until it reports it.

Plain numbers and lists: what is done for every token costs half a microsecond (`benchmarks/gateway.py`).
"""

from __future__ import annotations

from collections import Counter

from quire.gateway.request_record import RequestRecord
from quire.internal.v1 import metrics_pb2
from quire.metrics import GATEWAY_METRICS, HistogramCounts


class RequestMetrics:
    """An observer of requests; see quire/metrics.py for what each figure means."""

    def __init__(self, max_model_len: int) -> None:
        """`max_model_len`, in tokens, gives the buckets of lengths."""
        self._histograms = {
            metric.name: HistogramCounts(metric.bounds(max_model_len))
            for metric in GATEWAY_METRICS
            if metric.kind == "histogram"
        }
        # By name and the values of its labels.
        self._counters: Counter[tuple[str, ...]] = Counter()
        # What is counted for every token has a place of its own.
        self._inter_token = self._histograms["inter_token_latency_seconds"]
        self._num_generated = 0
        self._generated_by_tenant: dict[str, int] = {}

    def on_tokens(self, record: RequestRecord, num_tokens: int, interval_s: float | None) -> None:
        """See RequestObserver."""
        self._num_generated += num_tokens
        if tenant := record.tenant.name:
            by_tenant = self._generated_by_tenant
            by_tenant[tenant] = by_tenant.get(tenant, 0) + num_tokens
        if interval_s is not None:
            self._inter_token.observe(interval_s)
        else:
            self._count_prompt(record)
            self._observe("time_to_first_token_seconds", record.time_to_first_token_s)

    def on_end(self, record: RequestRecord) -> None:
        """See RequestObserver."""
        reasons: list[str] = [*record.finish_reasons]
        if record.error is not None:
            reasons += ["error"] * (record.num_sequences - len(reasons))
        for reason in reasons:
            self._count("request_success", reason)
            self._count_tenant("tenant_request_success", record.tenant.name, reason)
        # Durations and lengths are of requests that were answered in full.
        if record.error is None and "abort" not in record.finish_reasons:
            if record.first_token_s is None:  # an embedding
                self._count_prompt(record)
            self._observe_answered(record)

    def count_http(self, status: int) -> None:
        """A REST request is being answered."""
        self._count("http_responses", str(status))

    def count_grpc(self, status: str) -> None:
        """A call has ended."""
        self._count("grpc_responses", status)

    def take(self) -> metrics_pb2.MetricValues | None:
        """What was counted since the last call, if anything."""
        self._count("generation_tokens", by=self._num_generated)
        for tenant, num_tokens in self._generated_by_tenant.items():
            self._count_tenant("tenant_generation_tokens", tenant, by=num_tokens)
        self._num_generated, self._generated_by_tenant = 0, {}
        values = metrics_pb2.MetricValues()
        for (name, *labels), value in self._counters.items():
            if value:
                values.numbers.add(name=name, labels=labels, value=value)
        self._counters.clear()
        for name, histogram in self._histograms.items():
            if any(histogram.counts):
                values.histograms.add(name=name, counts=histogram.counts, sum=histogram.sum)
                histogram.clear()
        return values if values.numbers or values.histograms else None

    def _count_prompt(self, record: RequestRecord) -> None:
        num_cached = record.num_cached_tokens
        self._count("prompt_tokens", by=record.num_prompt_tokens)
        self._count("prompt_tokens_cached", by=num_cached)
        self._count("prompt_tokens_by_source", "local_cache_hit", by=num_cached)
        self._count("prompt_tokens_by_source", "local_compute", by=record.num_prompt_tokens - num_cached)
        self._count_tenant("tenant_prompt_tokens", record.tenant.name, by=record.num_prompt_tokens)

    def _observe_answered(self, record: RequestRecord) -> None:
        """All that is known of a request at its end, in the words of vLLM's FinishedRequestStats."""
        assert record.ended_s is not None
        self._observe("request_prompt_tokens", record.num_prompt_tokens)
        self._observe("request_prefill_kv_computed_tokens", record.num_prompt_tokens - record.num_cached_tokens)
        self._observe("e2e_request_latency_seconds", record.ended_s - record.arrived_s)
        self._observe("request_queue_time_seconds", record.queued_s)
        if record.first_token_s is None or record.last_token_s is None:
            self._observe("request_prefill_time_seconds", record.ended_s - record.scheduled_s)
            self._observe("request_inference_time_seconds", record.ended_s - record.scheduled_s)
            return
        decode_s = record.last_token_s - record.first_token_s
        self._observe("request_prefill_time_seconds", record.first_token_s - record.scheduled_s)
        self._observe("request_inference_time_seconds", record.last_token_s - record.scheduled_s)
        self._observe("request_decode_time_seconds", decode_s)
        longest = max(record.output_lengths)
        self._observe("request_time_per_output_token_seconds", decode_s / (longest - 1) if longest > 1 else 0.0)
        for length in record.output_lengths:
            self._observe("request_generation_tokens", length)
        self._observe("request_max_num_generation_tokens", longest)
        self._observe("request_params_n", record.num_sequences)
        self._observe("request_params_max_tokens", record.max_tokens)

    def _count(self, name: str, *labels: str, by: int = 1) -> None:
        self._counters[name, *labels] += by

    def _count_tenant(self, name: str, tenant: str, *labels: str, by: int = 1) -> None:
        """Counts for a tenant that has a name: a server without keys has none."""
        if tenant:
            self._count(name, tenant, *labels, by=by)

    def _observe(self, name: str, value: float | None) -> None:
        # Times of two processes' clocks may differ by the time of a message.
        if value is not None:
            self._histograms[name].observe(max(value, 0))
