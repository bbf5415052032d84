"""The gateway process: REST and gRPC in one event loop, over one engine."""

from __future__ import annotations

import logging
import resource
from typing import TYPE_CHECKING

from quire.config import GatewaySettings
from quire.gateway.engine import Engine
from quire.gateway.listeners import Listeners
from quire.gateway.metrics import RequestMetrics
from quire.gateway.metrics_report import MetricsReporter
from quire.gateway.refusal_log import RefusalLog
from quire.gateway.request_log import RequestLog
from quire.process import StatusReporter, StopSignal, settle_garbage_collection, unless_stopped
from quire.tracing import open_export

if TYPE_CHECKING:
    from quire.otlp import TraceExport

logger = logging.getLogger(__name__)


async def run(settings: GatewaySettings, status: StatusReporter, stop: StopSignal) -> None:
    """Serves until `stop` is set; then ends what runs, within a time, and closes everything.

    A scheduler that is lost is waited for. Raises StartupError for a port that is taken, a tokenizer that cannot be
    loaded, a scheduler that does not become ready, and one that comes back with another model.
    """
    _allow_descriptors()
    traces = None if settings.otlp_traces_endpoint is None else open_export(settings.otlp_traces_endpoint)
    listeners = Listeners(
        settings.host,
        settings.port,
        settings.grpc_port,
        settings,
        settings,
        settings,
        RefusalLog(enabled=settings.enable_log_requests),
        reuse_port=settings.reuse_port,
    )
    try:
        await listeners.start()
        engine = await unless_stopped(_start_engine(settings), stop)
        if engine is None:
            return
        metrics = _observe(engine)
        try:
            _log_requests(engine, settings)
            if traces is not None:
                _trace_requests(engine, settings, traces)
            await listeners.serve(engine, metrics, settings, settings.shutdown_timeout)
            settle_garbage_collection()
            status.ready(port=listeners.port, grpc_port=listeners.grpc_port)
            logger.info("serving REST on port %d and gRPC on port %d", listeners.port, listeners.grpc_port)
            lost = await unless_stopped(engine.wait_lost(), stop)
            await listeners.refuse()
            if lost is not None:
                raise lost
            await engine.drain(listeners.until_answered(), settings.shutdown_timeout)
        finally:
            await metrics.close()
            await engine.close()
    finally:
        await listeners.close()
        if traces is not None:
            await traces.close()


def _log_requests(engine: Engine, settings: GatewaySettings) -> None:
    """Has requests written to the log."""
    if settings.enable_log_requests:
        engine.observers.append(RequestLog(settings.log_format, settings.max_log_len))
        engine.recorder.keeps_text = settings.log_prompts


def _trace_requests(engine: Engine, settings: GatewaySettings, traces: TraceExport) -> None:
    """Has requests traced."""
    from quire.gateway.tracing import GatewayTracing  # imports OpenTelemetry

    tracer = traces.tracer("quire-gateway", f"gateway-{settings.index}")
    engine.recorder.tracer = GatewayTracing(tracer, traces.ids, engine.limits.model)


def _allow_descriptors() -> None:
    """Raises the limit on open descriptors, of which each connection is one, as far as the process may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _observe(engine: Engine) -> MetricsReporter:
    """Begins to count what becomes of requests, and to report it."""
    counts = RequestMetrics(engine.limits.max_model_len)
    engine.observers.append(counts)
    reporter = MetricsReporter(counts, engine.scheduler)
    reporter.start()
    return reporter


async def _start_engine(settings: GatewaySettings) -> Engine:
    return await Engine.start(
        scheduler=settings.scheduler,
        model=settings.model,
        revision=settings.revision,
        served_model_names=settings.model_names,
        max_logprobs=settings.max_logprobs,
        max_concurrent_requests=settings.max_concurrent_requests,
        startup_timeout=settings.startup_timeout,
        watchdog_timeout=settings.watchdog_timeout,
        chat_options=settings,
    )
