"""The executor's process: loads a model, serves ExecutorService, ends with its parent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable

import torch

from quire import kernels, rpc
from quire.config import ExecutorSettings
from quire.errors import StartupError
from quire.executor.model import Model, load_model
from quire.executor.model_runner import ModelRunner
from quire.executor.service import ExecutorService
from quire.internal.v1 import executor_pb2_grpc
from quire.process import StatusReporter, StopSignal

logger = logging.getLogger(__name__)

# What open calls may take to end when the process is asked to stop, in seconds; a step in flight ends before.
_GRACE_S = 5.0


async def run(settings: ExecutorSettings, status: StatusReporter, stop: StopSignal) -> None:
    """Serves until `stop`. Raises StartupError if the model or the address cannot be had."""
    _set_threads(settings.threads)
    model = await _load(settings, stop)
    if model is None:
        return
    service = ExecutorService(ModelRunner(model))
    server = rpc.new_server()
    executor_pb2_grpc.add_ExecutorServiceServicer_to_server(service, server)
    port = rpc.bind(server, settings.listen)
    await server.start()
    logger.info("serving %s in %s on %s", settings.model, model.dtype_name, model.device)
    status.ready(port=port)
    await stop.wait()
    await service.close()
    await server.stop(_GRACE_S)


async def _load(settings: ExecutorSettings, stop: StopSignal) -> Model | None:
    """The model, or None if the process was stopped before it was there."""
    loading = _in_daemon_thread(lambda: load_model(settings))
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((loading, stopped), timeout=settings.startup_timeout, return_when=asyncio.FIRST_COMPLETED)
        if stopped.done():
            return None
        if not loading.done():
            raise StartupError(
                f"the model was not loaded within --startup-timeout {settings.startup_timeout:g} seconds",
                field="startup_timeout",
            )
        return loading.result()
    finally:
        stopped.cancel()


def _in_daemon_thread(function: Callable[[], Model]) -> asyncio.Future[Model]:
    """Unlike the loop's own threads, one that the end of the process does not wait for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Model] = loop.create_future()

    def deliver(outcome: Model | Exception) -> None:
        if future.done():
            return
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    def work() -> None:
        outcome: Model | Exception
        try:
            outcome = function()
        except Exception as error:
            outcome = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(deliver, outcome)

    threading.Thread(target=work, name="load", daemon=True).start()
    return future


def _set_threads(wanted: int | None) -> None:
    threads = wanted or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    try:
        kernels.set_num_threads(threads)
    except kernels.NativeLibraryError as error:
        raise StartupError(f"the native kernels cannot be used: {error}") from error
