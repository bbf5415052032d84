"""The span of a request in the gateway, by OpenTelemetry's conventions for generative AI, and vLLM's for latencies.

It never holds text of a prompt or an output.
"""

from __future__ import annotations

from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from quire.gateway.origin import Origin
from quire.gateway.request_record import RequestRecord
from quire.otlp import TraceIds, trace_parent
from quire.tracing import wall_clock_offset_ns
from quire.v1 import generate_pb2

_PROVIDER: Final = "quire"
# Of what is single precision in a request.
_DIGITS: Final = 6
_propagator: Final = TraceContextTextMapPropagator()


class GatewayTracing:
    """A RequestTracer."""

    def __init__(self, tracer: Tracer, ids: TraceIds, model: str) -> None:
        """`ids` are the tracer's."""
        self._tracer = tracer
        self._ids = ids
        self._model = model

    def begin(self, record: RequestRecord) -> None:
        """Begins the span, under the caller's if there is one; the caller decides whether there is a trace at all."""
        parent = _context_of(record.origin)
        if not parent:
            self._ids.next_trace_id = record.origin.own_trace_id
        offset_ns = wall_clock_offset_ns()
        span = self._tracer.start_span(
            f"{record.operation} {self._model}",
            parent,
            SpanKind.SERVER,
            start_time=_wall_ns(record.arrived_s, offset_ns),
        )
        self._ids.next_trace_id = 0
        if span.is_recording():
            record.span, record.clock_offset_ns = span, offset_ns
            record.trace_parent = trace_parent(span.get_span_context())

    def on_end(self, record: RequestRecord) -> None:
        """Ends the span."""
        span: Span | None = record.span
        if span is None or record.ended_s is None:
            return
        span.set_attributes(self._attributes(record))
        if record.first_token_s is not None:
            span.add_event("first token", timestamp=_wall_ns(record.first_token_s, record.clock_offset_ns))
        if record.error is not None:
            span.set_status(Status(StatusCode.ERROR, record.error.code))
        span.end(_wall_ns(record.ended_s, record.clock_offset_ns))

    def _attributes(self, record: RequestRecord) -> dict[str, Any]:
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": record.operation,
            "gen_ai.provider.name": _PROVIDER,
            "gen_ai.system": _PROVIDER,  # the name before provider.name, which many tools still look for
            "gen_ai.request.model": self._model,
            "gen_ai.response.model": self._model,
            "gen_ai.request.id": record.request_id,
            "gen_ai.usage.input_tokens": record.num_prompt_tokens,
            "gen_ai.usage.output_tokens": record.num_output_tokens,
            "gen_ai.usage.cache_read.input_tokens": record.num_cached_tokens,
            **_route(record.origin.route),
            **_latencies(record),
        }
        if record.params is not None:
            attributes |= {"gen_ai.response.id": _response_id(record), **_sampling(record.params)}
        if record.num_sequences != 1:
            attributes["gen_ai.request.choice.count"] = record.num_sequences
        if record.finish_reasons:
            attributes["gen_ai.response.finish_reasons"] = list(record.finish_reasons)
        if record.error is not None:
            attributes["error.type"] = record.error.code
        if record.tenant.name:
            attributes["quire.tenant"] = record.tenant.name
        if record.num_attempts > 1:
            attributes["quire.attempts"] = record.num_attempts
        return attributes


def _context_of(origin: Origin) -> Context:
    """The caller's context; empty if there is none, or none that is valid."""
    if not origin.trace_parent:
        return Context()
    carrier = {"traceparent": origin.trace_parent, "tracestate": origin.trace_state}
    return _propagator.extract({name: value for name, value in carrier.items() if value}, Context())


def _response_id(record: RequestRecord) -> str:
    """The `id` of the answer, which the prompts of a completion share."""
    if record.operation == "text_completion" and record.request_id.startswith("cmpl-"):
        return record.request_id.rpartition("-")[0]
    return record.request_id


def _route(route: str) -> dict[str, Any]:
    if route.startswith("/quire."):
        service, _, method = route[1:].partition("/")
        return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    return {"http.route": route} if route else {}


def _sampling(params: generate_pb2.SamplingParams) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": round(params.temperature, _DIGITS),
        "gen_ai.request.top_p": round(params.top_p, _DIGITS),
    }
    if params.top_k > 0:
        attributes["gen_ai.request.top_k"] = params.top_k
    if params.HasField("seed"):
        # Integers have a sign in OTLP.
        attributes["gen_ai.request.seed"] = params.seed if params.seed < 1 << 63 else str(params.seed)
    for name in ("frequency_penalty", "presence_penalty"):
        if value := getattr(params, name):
            attributes[f"gen_ai.request.{name}"] = round(value, _DIGITS)
    return attributes


def _latencies(record: RequestRecord) -> dict[str, float]:
    """Seconds, by vLLM's names; those that it came to."""
    latencies = {"e2e": record.total_s}
    if record.submitted_s:
        latencies["time_in_queue"] = record.queued_s
    if record.first_token_s is not None and record.last_token_s is not None:
        latencies |= {
            "time_to_first_token": record.first_token_s - record.arrived_s,
            "time_in_model_prefill": record.first_token_s - record.scheduled_s,
            "time_in_model_decode": record.last_token_s - record.first_token_s,
            "time_in_model_inference": record.last_token_s - record.scheduled_s,
        }
    return {f"gen_ai.latency.{name}": value for name, value in latencies.items()}


def _wall_ns(monotonic_s: float, offset_ns: int) -> int:
    return int(monotonic_s * 1e9) + offset_ns
