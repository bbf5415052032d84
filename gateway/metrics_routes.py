"""GET /metrics: the figures of the whole server, for Prometheus."""

from __future__ import annotations

import time
from typing import Final

from fastapi import APIRouter, Request, Response

from quire import __version__
from quire.config import MetricsAlias
from quire.gateway.access import Access
from quire.gateway.engine import Engine
from quire.gateway.metrics_report import MetricsReporter
from quire.gateway.metrics_text import MetricsText, TextFormat
from quire.gateway.tls import peer_name
from quire.internal.v1 import metrics_pb2, scheduler_pb2

# How long an answer is given again, in seconds. The route is open, and to write the text takes milliseconds.
_HOLD_S: Final = 0.1


def metrics_routes(
    engine: Engine, access: Access, reporter: MetricsReporter, alias: MetricsAlias | None = None
) -> APIRouter:
    """One route, which is open; what it tells of tenants is for operators."""
    router = APIRouter(tags=["server"])
    scrapes = Scrapes(engine, reporter, alias)

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
        is_operator = tenant is not None and tenant.is_operator
        format_ = TextFormat.of(request.headers.get("accept", ""))
        body = await scrapes.text(format_, with_tenants=is_operator)
        return Response(body, headers={"content-type": format_.value})

    return router


class Scrapes:
    """Asks for the figures and writes them, at most ten times a second."""

    def __init__(self, engine: Engine, reporter: MetricsReporter, alias: MetricsAlias | None) -> None:
        limits = engine.limits
        self._text = MetricsText(limits.models[0], limits.max_model_len, with_vllms_names=alias == "vllm")
        self._setup = setup_values(engine.scheduler.description)
        self._reporter = reporter
        # By format and whether tenants are in it: the latest text, and until when it counts.
        self._latest: dict[tuple[TextFormat, bool], tuple[bytes, float]] = {}

    async def text(self, format_: TextFormat, *, with_tenants: bool) -> bytes:
        """The text. Raises QuireError if the scheduler is away."""
        key = (format_, with_tenants)
        if (body := self._held(key)) is None:
            values = await self._reporter.collect(with_tenants=with_tenants)
            # Others that waited too may have written it meanwhile.
            if (body := self._held(key)) is None:
                values.MergeFrom(self._setup)
                body = self._text.write(values, format_)
                self._latest[key] = (body, time.monotonic() + _HOLD_S)
        return body

    def _held(self, key: tuple[TextFormat, bool]) -> bytes | None:
        body, until = self._latest.get(key, (b"", 0.0))
        return body if time.monotonic() < until else None


def setup_values(description: scheduler_pb2.DescribeResponse) -> metrics_pb2.MetricValues:
    """What stays as it is."""
    values = metrics_pb2.MetricValues()
    pool = description
    labels = (pool.block_size, pool.enable_prefix_caching, pool.kv_cache_bytes, pool.num_blocks)
    values.numbers.add(name="cache_config_info", labels=map(str, labels), value=1)
    values.numbers.add(name="build_info", labels=[__version__], value=1)
    return values
