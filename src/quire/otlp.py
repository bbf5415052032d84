"""Sends spans to an OpenTelemetry collector: OTLP over gRPC, from a thread of its own.

The exporter's OTEL_EXPORTER_OTLP_* variables (headers, certificate, timeout), OTEL_RESOURCE_ATTRIBUTES and
OTEL_TRACES_SAMPLER have effect.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import threading
from collections.abc import Sequence
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Tracer

from quire.process import in_daemon_thread

logger = logging.getLogger(__name__)

# Not `quire.__version__`: the package's own module leads to everything else.
_VERSION: Final = importlib.metadata.version("quire")

# Spans that wait; the oldest are lost beyond. A span takes about 2 KiB.
_MAX_QUEUED: Final = 8192
_MAX_BATCH: Final = 512
_PERIOD_MS: Final = 1000
# How long the end of a process waits for the last spans to be sent.
_FLUSH_S: Final = 3.0
_EXPORTER_LOGGER: Final = "opentelemetry.exporter.otlp.proto.grpc.exporter"
_QUEUE_LOGGER: Final = "opentelemetry.sdk._shared_internal"


class _LibraryFilter(logging.Filter):
    """Keeps to itself what the libraries say of every batch that is not sent: we say it once."""

    def __init__(self) -> None:
        super().__init__()
        # The latest of them, in the thread that sends.
        self.latest = threading.local()
        # Exporters whose collector is away.
        self.failing: set[object] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter."""
        if record.name == _EXPORTER_LOGGER:
            self.latest.message = record.getMessage()
            return False
        # That the queue is full goes without saying then; an error there is a defect.
        return not self.failing or record.levelno >= logging.ERROR


_library_filter: Final = _LibraryFilter()


class TraceIds(RandomIdGenerator):
    """Random ids, or for the next trace one that is given."""

    def __init__(self) -> None:
        self.next_trace_id = 0

    def generate_trace_id(self) -> int:
        """See IdGenerator."""
        trace_id, self.next_trace_id = self.next_trace_id, 0
        return trace_id or super().generate_trace_id()


class TraceExport:
    """The spans of a process, on their way to the collector. Spans are lost rather than waited for."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint` is a URL; https means TLS."""
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"))
        self._exporter = _ReportingExporter(exporter, endpoint)
        self._processor = BatchSpanProcessor(
            self._exporter, _MAX_QUEUED, schedule_delay_millis=_PERIOD_MS, max_export_batch_size=_MAX_BATCH
        )
        self.ids = TraceIds()

    def tracer(self, service: str, instance: str) -> Tracer:
        """Of a process of ours, or of one that this one speaks for."""
        resource = Resource.create(
            {"service.name": service, "service.instance.id": instance, "service.version": _VERSION}
        )
        provider = TracerProvider(resource=resource, shutdown_on_exit=False, id_generator=self.ids)
        provider.add_span_processor(self._processor)
        return provider.get_tracer("quire", _VERSION)

    async def close(self) -> None:
        """Sends what is left, for a few seconds at most."""
        sending = in_daemon_thread(self._processor.shutdown)
        await asyncio.wait((sending,), timeout=_FLUSH_S)
        if not sending.done():
            logger.warning("the last spans are lost: the collector takes too long")
            self._exporter.shutdown()


class _ReportingExporter(SpanExporter):
    """Says once that the collector is away, and once that it is back. Used by one thread at a time."""

    def __init__(self, exporter: OTLPSpanExporter, endpoint: str) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._num_lost = 0
        for name in (_EXPORTER_LOGGER, _QUEUE_LOGGER):
            logging.getLogger(name).addFilter(_library_filter)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See SpanExporter."""
        _library_filter.latest.message = "no reason was given"
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            if self._num_lost:
                logger.info("%s takes spans again; %d or more were lost", self._endpoint, self._num_lost)
            self._num_lost = 0
            _library_filter.failing.discard(self)
            return result
        if not self._num_lost:
            logger.warning("spans are lost until %s takes them: %s", self._endpoint, _library_filter.latest.message)
        self._num_lost += len(spans)
        _library_filter.failing.add(self)
        return result

    def shutdown(self) -> None:
        """See SpanExporter."""
        _library_filter.failing.discard(self)
        self._exporter.shutdown()


def trace_parent(context: Any) -> str:
    """The W3C `traceparent` of a span's context."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
