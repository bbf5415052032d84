"""The executor's process: loads a model, serves ExecutorService, ends with its parent."""

from __future__ import annotations

import asyncio
import logging

from quire import rpc
from quire.config import ExecutorSettings
from quire.errors import StartupError
from quire.executor.model_runner import ModelRunner
from quire.executor.sandbox import enter_sandbox
from quire.executor.service import ExecutorService
from quire.executor.start import MeasureMemory, set_up_kernels, start_runner
from quire.internal.v1 import executor_pb2_grpc
from quire.process import StatusReporter, StopSignal, in_daemon_thread, settle_garbage_collection, unless_stopped

logger = logging.getLogger(__name__)

# What open calls may take to end when the process is asked to stop, in seconds; a step in flight ends before.
_GRACE_S = 5.0


async def run(settings: ExecutorSettings, status: StatusReporter, stop: StopSignal) -> None:
    """Serves until `stop`. Raises StartupError if the model or the address cannot be had."""
    set_up_kernels(settings)
    loaded = await unless_stopped(_load(settings), stop)
    if loaded is None:
        return
    runner, measure_memory = loaded
    service, model = ExecutorService(runner, measure_memory), runner.model
    server = rpc.new_server()
    executor_pb2_grpc.add_ExecutorServiceServicer_to_server(service, server)
    rpc.bind(server, settings.listen)
    await server.start()
    enter_sandbox(settings.sandbox, device=model.device.type)
    logger.info("serving %s in %s on %s", settings.model, model.dtype_name, model.device)
    settle_garbage_collection()
    status.ready()
    await stop.wait()
    await service.close()
    await server.stop(_GRACE_S)


async def _load(settings: ExecutorSettings) -> tuple[ModelRunner, MeasureMemory]:
    try:
        async with asyncio.timeout(settings.startup_timeout):
            return await in_daemon_thread(lambda: start_runner(settings))
    except TimeoutError:
        raise StartupError(
            f"the model was not loaded within --startup-timeout {settings.startup_timeout:g} seconds",
            field="startup_timeout",
        ) from None
