"""GET /metrics: the figures of the whole server, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from quire import __version__
from quire.config import MetricsAlias
from quire.gateway.access import Access
from quire.gateway.engine import Engine
from quire.gateway.metrics_report import MetricsReporter
from quire.gateway.metrics_text import MetricsText
from quire.gateway.tls import peer_name
from quire.internal.v1 import metrics_pb2, scheduler_pb2


def metrics_routes(engine: Engine, access: Access, metrics: MetricsReporter, alias: MetricsAlias | None) -> APIRouter:
    """One route, which is open; what it tells of tenants is for operators."""
    router = APIRouter(tags=["server"])
    limits = engine.limits
    text = MetricsText(limits.models[0], limits.max_model_len, with_vllms_names=alias == "vllm")
    setup = _setup(engine.scheduler.description)

    @router.get(
        "/metrics",
        response_class=Response,
        responses={
            "200": {"content": {"text/plain": {}, "application/openmetrics-text": {}}},
            "503": {"description": "The scheduler is away."},
        },
    )
    async def show_metrics(request: Request) -> Response:
        """The figures of all gateways and of the scheduler, in Prometheus' text format or OpenMetrics."""
        tenant = access.known_tenant(dict(request.scope["headers"]), peer_name(request.scope))
        values = await metrics.collect(with_tenants=tenant is not None and tenant.is_operator)
        values.MergeFrom(setup)
        body, content_type = text.write(values, request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    return router


def _setup(description: scheduler_pb2.DescribeResponse) -> metrics_pb2.MetricValues:
    """What stays as it is."""
    values = metrics_pb2.MetricValues()
    pool = description
    labels = (pool.block_size, pool.enable_prefix_caching, pool.kv_cache_bytes, pool.num_blocks)
    values.numbers.add(name="cache_config_info", labels=map(str, labels), value=1)
    values.numbers.add(name="build_info", labels=[__version__], value=1)
    return values
