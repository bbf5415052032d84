"""Every metric of a server, once: what /metrics shows, docs/metrics.md lists and the dashboard may ask for.

Where vLLM (V1) has a metric of the same meaning, name, labels and buckets are vLLM's. Besides the labels below each
metric has `model_name` and `engine`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One family."""

    # Without the prefix and, of a counter, without `_total`.
    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    # Upper bounds of the buckets but the last, which has none. None: of lengths in tokens, up to the context's.
    buckets: tuple[float, ...] | None = None
    # Values of its one label that are shown from the start; others come as they come.
    values: tuple[str, ...] = ()
    # Whether vLLM has it.
    is_vllms: bool = True
    # Names that older versions of vLLM gave it.
    former_names: tuple[str, ...] = ()

    def bounds(self, max_model_len: int) -> tuple[float, ...]:
        """The buckets' upper bounds, for a model with a context of so many tokens."""
        return lengths_up_to(max_model_len) if self.buckets is None else self.buckets


def lengths_up_to(most: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50, … up to `most`."""
    return tuple(m * 10**e for e in range(len(str(most))) for m in (1, 2, 5) if m * 10**e <= most)


_TIME_TO_FIRST_TOKEN: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_TOKEN_TIMES: Final = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_REQUEST_TIMES: Final = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
_STEP_TOKENS: Final = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
# Ours: from a tiny model on a CPU to long prompts of a large one.
_STEP_TIMES: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def _counter(
    name: str,
    help_: str,
    *labels: str,
    values: tuple[str, ...] = (),
    former: tuple[str, ...] = (),
    own: bool = False,
) -> Metric:
    return Metric(name, "counter", help_, labels, (), values, not own, former)


def _gauge(name: str, help_: str, *labels: str, former: tuple[str, ...] = (), own: bool = False) -> Metric:
    return Metric(name, "gauge", help_, labels, (), (), not own, former)


def _histogram(
    name: str, help_: str, buckets: tuple[float, ...] | None, *, former: tuple[str, ...] = (), own: bool = False
) -> Metric:
    return Metric(name, "histogram", help_, (), buckets, (), not own, former)


# What the scheduler knows.
SCHEDULER_METRICS: Final = (
    _gauge("num_requests_running", "Sequences that are computed."),
    _gauge("num_requests_waiting", "Sequences in the queue."),
    _gauge("num_requests_paused", "Requests whose readers lag, and which are not computed meanwhile.", own=True),
    _gauge(
        "kv_cache_usage_perc",
        "Part of the KV blocks that sequences hold, from 0 to 1.",
        former=("gpu_cache_usage_perc",),
    ),
    _gauge("kv_blocks", "KV blocks: free, held, or cached (can be found, and taken).", "state", own=True),
    _counter(
        "prefix_cache_queries",
        "Tokens that were looked for in the prefix cache.",
        former=("gpu_prefix_cache_queries",),
    ),
    _counter("prefix_cache_hits", "Tokens that were found there.", former=("gpu_prefix_cache_hits",)),
    _counter(
        "external_prefix_cache_queries", "Tokens that were not found there, and looked for in the swap tier, if any."
    ),
    _counter("external_prefix_cache_hits", "Tokens that were found in the swap tier (--swap-space)."),
    _gauge(
        "cpu_cache_usage_perc",
        "Part of the swap tier's blocks that hold something, from 0 to 1; 0 without a tier. vLLM had it before V1.",
        own=True,
    ),
    _counter("num_preemptions", "Times that a sequence lost its blocks to others and was queued again."),
    _histogram("iteration_tokens_total", "Tokens that a step computed.", _STEP_TOKENS),
    _histogram("step_duration_seconds", "Time that an executor took for a step.", _STEP_TIMES, own=True),
    _counter("copied_blocks", "KV blocks that were copied because several sequences shared them.", own=True),
    _counter("swapped_out_blocks", "KV blocks that were copied to the swap tier when they were evicted.", own=True),
    _counter("swapped_in_blocks", "KV blocks that were copied back from there.", own=True),
    _gauge("restored_blocks", "KV blocks whose content outlived the last scheduler.", own=True),
    _counter("lost_executors", "Times that an executor died or hung, and its sequences began again.", own=True),
    _gauge("executors", "Executors that there should be.", own=True),
    _gauge("live_executors", "Executors that take steps.", own=True),
    _gauge("gateways", "Gateways that are connected.", own=True),
    _gauge("scheduler_start_time_seconds", "Unix time at which counters began at zero.", own=True),
    _gauge("tenant_num_requests_running", "Sequences that are computed, by tenant.", "tenant", own=True),
    _gauge("tenant_num_requests_waiting", "Sequences in the queue, by tenant.", "tenant", own=True),
)

# What gateways count, one request at a time: a prompt, with all its continuations.
GATEWAY_METRICS: Final = (
    _counter("prompt_tokens", "Tokens of prompts, whether computed or found in the prefix cache."),
    _counter(
        "prompt_tokens_by_source",
        "The same, by where their keys and values come from.",
        "source",
        values=("local_compute", "local_cache_hit"),
    ),
    _counter("prompt_tokens_cached", "Of these, the tokens that were found in the prefix cache."),
    _counter("generation_tokens", "Tokens that were generated."),
    _counter(
        "request_success",
        "Continuations that ended: stop, length, abort (the client left) or error.",
        "finished_reason",
        values=("stop", "length", "abort", "error"),
    ),
    _histogram("request_prompt_tokens", "Length of a prompt.", None),
    _histogram("request_prefill_kv_computed_tokens", "Tokens of a prompt that were not in the prefix cache.", None),
    _histogram("request_generation_tokens", "Length of a continuation, in tokens.", None),
    _histogram("request_max_num_generation_tokens", "Length of the longest continuation of a request.", None),
    _histogram("request_params_n", "Continuations that a request asked for.", (1, 2, 5, 10, 20)),
    _histogram("request_params_max_tokens", "The longest output that a request allowed, in tokens.", None),
    _histogram(
        "time_to_first_token_seconds", "From the arrival of a request to its first token.", _TIME_TO_FIRST_TOKEN
    ),
    _histogram(
        "inter_token_latency_seconds",
        "From one piece of a request's output to the next, each of a token or of several that came together.",
        _TOKEN_TIMES,
        former=("time_per_output_token_seconds",),
    ),
    _histogram(
        "request_time_per_output_token_seconds",
        "Decode time of a request by its tokens but the first.",
        _TOKEN_TIMES,
    ),
    _histogram("e2e_request_latency_seconds", "From the arrival of a request to its end.", _REQUEST_TIMES),
    _histogram("request_queue_time_seconds", "Time that a request waited in the queue.", _REQUEST_TIMES),
    _histogram("request_inference_time_seconds", "From a request's first step to its last token.", _REQUEST_TIMES),
    _histogram("request_prefill_time_seconds", "From a request's first step to its first token.", _REQUEST_TIMES),
    _histogram("request_decode_time_seconds", "From a request's first token to its last.", _REQUEST_TIMES),
    _counter("http_responses", "Answers on REST, by HTTP status.", "status", own=True),
    _counter("grpc_responses", "Answers to calls of GenerateService, by gRPC status.", "status", own=True),
    _counter("tenant_prompt_tokens", "As prompt_tokens, by tenant.", "tenant", own=True),
    _counter("tenant_generation_tokens", "As generation_tokens, by tenant.", "tenant", own=True),
    _counter("tenant_request_success", "As request_success, by tenant.", "tenant", "finished_reason", own=True),
)

# What a gateway says of the server as it is set up.
SETUP_METRICS: Final = (
    _gauge(
        "cache_config_info",
        "The KV pool; always 1. num_gpu_blocks counts its blocks wherever they are.",
        *("block_size", "enable_prefix_caching", "kv_cache_memory_bytes", "num_gpu_blocks"),
    ),
    _gauge("build_info", "The server's version; always 1.", "version", own=True),
)

METRICS: Final = {metric.name: metric for metric in (*SCHEDULER_METRICS, *GATEWAY_METRICS, *SETUP_METRICS)}
# Families with a label `tenant`: for operators only.
TENANT_METRICS: Final = frozenset(name for name, metric in METRICS.items() if "tenant" in metric.labels)


class HistogramCounts:
    """The counts of one histogram."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        # Inclusive upper bounds, ascending; the last bucket has none.
        self.bounds = bounds
        self.sum = 0.0
        # One more than bounds; not cumulative.
        self.counts = [0] * (len(bounds) + 1)

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self.counts)

    def observe(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def add(self, counts: Sequence[int], sum_: float) -> None:
        """Counts what was counted elsewhere, in the same buckets. Raises ValueError if there are others."""
        self.counts = [own + more for own, more in zip(self.counts, counts, strict=True)]
        self.sum += sum_

    def clear(self) -> None:
        """Begins at zero."""
        self.counts[:] = [0] * len(self.counts)
        self.sum = 0.0
