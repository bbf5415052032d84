"""An OpenTelemetry collector that keeps what it gets: OTLP's TraceService, in this process."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from support.servers import wait_for

# A span is there a second after its end, and longer on a busy machine.
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class ReceivedSpan:
    """A span and the process that it is of."""

    service: str
    instance: str
    span: trace_pb2.Span
    attributes: dict[str, Any]

    @property
    def name(self) -> str:
        return self.span.name

    @property
    def trace_id(self) -> str:
        return self.span.trace_id.hex()

    @property
    def span_id(self) -> str:
        return self.span.span_id.hex()

    @property
    def parent_id(self) -> str:
        return self.span.parent_span_id.hex()

    @property
    def events(self) -> list[str]:
        return [event.name for event in self.span.events]

    def lies_in(self, other: ReceivedSpan, tolerance_ns: int) -> bool:
        """Whether it neither begins before the other nor ends after it."""
        return (
            self.span.start_time_unix_nano >= other.span.start_time_unix_nano - tolerance_ns
            and self.span.end_time_unix_nano <= other.span.end_time_unix_nano + tolerance_ns
        )


class OtlpReceiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps all spans, in the order in which they came."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[ReceivedSpan] = []
        self.endpoint = ""

    def Export(  # noqa: N802 - gRPC's name
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        with self._lock:
            for resource_spans in request.resource_spans:
                resource = _attributes(resource_spans.resource.attributes)
                service, instance = resource["service.name"], resource["service.instance.id"]
                for scope_spans in resource_spans.scope_spans:
                    for span in scope_spans.spans:
                        self._spans.append(ReceivedSpan(service, instance, span, _attributes(span.attributes)))
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[ReceivedSpan]:
        with self._lock:
            return self._spans.copy()

    def trace(self, trace_id: str) -> list[ReceivedSpan]:
        """What came of a trace so far."""
        return [span for span in self.spans if span.trace_id == trace_id]

    def wait_for(self, is_complete: Callable[[list[ReceivedSpan]], bool]) -> list[ReceivedSpan]:
        """All spans, once they are what is waited for."""
        wait_for(lambda: is_complete(self.spans), _TIMEOUT_S)
        return self.spans

    def wait_for_trace(self, trace_id: str, *names: str) -> list[ReceivedSpan]:
        """The spans of a trace, once those with these names are among them, each as often as it is named."""
        wait_for(lambda: Counter(span.name for span in self.trace(trace_id)) >= Counter(names), _TIMEOUT_S)
        return self.trace(trace_id)


@contextlib.contextmanager
def otlp_receiver(
    address: str = "127.0.0.1:0", credentials: grpc.ServerCredentials | None = None
) -> Iterator[OtlpReceiver]:
    """A receiver that listens; with credentials it speaks TLS."""
    receiver = OtlpReceiver()
    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    if credentials is None:
        receiver.endpoint = f"http://127.0.0.1:{server.add_insecure_port(address)}"
    else:
        receiver.endpoint = f"https://127.0.0.1:{server.add_secure_port(address, credentials)}"
    server.start()
    try:
        yield receiver
    finally:
        server.stop(0).wait()


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: common_pb2.AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(entry) for entry in value.array_value.values]
    return None if kind is None else getattr(value, kind)
