"""The executor's process: loads a model, serves ExecutorService, ends with its parent."""

from __future__ import annotations

import asyncio
import logging

import torch

from quire import kernels, rpc
from quire.config import ExecutorSettings
from quire.errors import StartupError
from quire.executor.model import Model, load_model
from quire.executor.model_runner import ModelRunner
from quire.executor.processors import usable_processors
from quire.executor.sandbox import enter_sandbox
from quire.executor.service import ExecutorService
from quire.internal.v1 import executor_pb2_grpc
from quire.process import StatusReporter, StopSignal, in_daemon_thread, settle_garbage_collection, unless_stopped

logger = logging.getLogger(__name__)

# What open calls may take to end when the process is asked to stop, in seconds; a step in flight ends before.
_GRACE_S = 5.0


async def run(settings: ExecutorSettings, status: StatusReporter, stop: StopSignal) -> None:
    """Serves until `stop`. Raises StartupError if the model or the address cannot be had."""
    _set_up_kernels(settings)
    model = await unless_stopped(_load(settings), stop)
    if model is None:
        return
    service = ExecutorService(ModelRunner(model))
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


async def _load(settings: ExecutorSettings) -> Model:
    try:
        async with asyncio.timeout(settings.startup_timeout):
            return await in_daemon_thread(lambda: load_model(settings))
    except TimeoutError:
        raise StartupError(
            f"the model was not loaded within --startup-timeout {settings.startup_timeout:g} seconds",
            field="startup_timeout",
        ) from None


def _set_up_kernels(settings: ExecutorSettings) -> None:
    threads = settings.threads or usable_processors()
    torch.set_num_threads(threads)
    kernels.set_batch_invariant(settings.batch_invariant)
    try:
        kernels.set_num_threads(threads)
        if settings.isa != "auto":
            kernels.set_isa(settings.isa)
    except kernels.NativeLibraryError as error:
        raise StartupError(f"the native kernels cannot be used: {error}") from error
    except ValueError as error:
        raise StartupError(f"--isa {settings.isa}: {error}", field="isa") from error
