"""The gateway process: REST and gRPC in one event loop, over one engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from quire.config import GatewaySettings, served_model_name
from quire.gateway.engine import Engine
from quire.gateway.listeners import Listeners
from quire.process import StatusReporter, StopSignal

logger = logging.getLogger(__name__)

T = TypeVar("T")

# How long running requests may go on after a stop, in seconds.
_DRAIN_S = 5


async def run(settings: GatewaySettings, status: StatusReporter, stop: StopSignal) -> None:
    """Serves until `stop` is set or the scheduler is lost; then drains for a few seconds and closes everything.

    Raises StartupError for a port that is taken, a tokenizer that cannot be loaded or a scheduler that does not
    become ready; ServiceUnavailableError when the scheduler is lost.
    """
    listeners = Listeners(settings.host, settings.port, settings.grpc_port)
    try:
        await listeners.start()
        engine = await _unless_stopped(stop, _start_engine(settings))
        if engine is None:
            return
        try:
            await listeners.serve(engine, _DRAIN_S)
            status.ready(port=listeners.port, grpc_port=listeners.grpc_port)
            logger.info("serving REST on port %d and gRPC on port %d", listeners.port, listeners.grpc_port)
            lost = await _unless_stopped(stop, engine.wait_lost())
            await listeners.refuse()
            if lost is not None:
                raise lost
            await engine.drain(_DRAIN_S)
        finally:
            await engine.close()
    finally:
        await listeners.close()


async def _start_engine(settings: GatewaySettings) -> Engine:
    return await Engine.start(
        scheduler=settings.scheduler,
        model=settings.model,
        revision=settings.revision,
        served_model_name=served_model_name(settings, settings.served_model_name),
        max_logprobs=settings.max_logprobs,
        startup_timeout=settings.startup_timeout,
    )


async def _unless_stopped(stop: StopSignal, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of the work, or None if the stop comes first, which cancels it."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
