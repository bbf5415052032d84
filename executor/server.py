"""The executor's process: loads a model, serves ExecutorService, ends with its parent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeAlias

import torch

from quire import kernels, rpc
from quire.config import ExecutorSettings
from quire.errors import StartupError
from quire.executor.cuda_setup import set_up_cuda
from quire.executor.device import async_device
from quire.executor.dry_run import measure_memory
from quire.executor.memory import CudaMemory, MemoryReport, host_memory
from quire.executor.model import Model, choose_device, load_model
from quire.executor.model_runner import ModelRunner
from quire.executor.processors import usable_processors
from quire.executor.sandbox import enter_sandbox
from quire.executor.service import ExecutorService
from quire.executor.step_limits import StepLimits
from quire.internal.v1 import executor_pb2_grpc
from quire.process import StatusReporter, StopSignal, in_daemon_thread, settle_garbage_collection, unless_stopped

logger = logging.getLogger(__name__)

MeasureMemory: TypeAlias = Callable[[], MemoryReport]

# What open calls may take to end when the process is asked to stop, in seconds; a step in flight ends before.
_GRACE_S = 5.0


async def run(settings: ExecutorSettings, status: StatusReporter, stop: StopSignal) -> None:
    """Serves until `stop`. Raises StartupError if the model or the address cannot be had."""
    _set_up_kernels(settings)
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
            return await in_daemon_thread(lambda: _load_and_measure(settings))
    except TimeoutError:
        raise StartupError(
            f"the model was not loaded within --startup-timeout {settings.startup_timeout:g} seconds",
            field="startup_timeout",
        ) from None


def _load_and_measure(settings: ExecutorSettings) -> tuple[ModelRunner, MeasureMemory]:
    """The model, ready to run, and how to measure the memory that its KV pool may take."""
    device, limits = choose_device(settings.device), StepLimits.of(settings)
    if device.type == "cpu":
        return make_runner(load_model(settings), limits), host_memory
    set_up_cuda(settings.runtime_dir)
    memory = CudaMemory(device)
    free_at_start = memory.free_bytes()
    runner = make_runner(load_model(settings), limits)
    report = measure_memory(runner, limits, memory, free_at_start)
    return runner, lambda: report


def make_runner(model: Model, limits: StepLimits) -> ModelRunner:
    """A runner of steps on the model's device. Raises StartupError where that cannot be used."""
    return ModelRunner(model, device=async_device(model.device), graph_sizes=limits.graph_sizes)


def _set_up_kernels(settings: ExecutorSettings) -> None:
    threads = settings.threads or usable_processors()
    torch.set_num_threads(threads)
    try:
        kernels.set_num_threads(threads)
        if settings.isa != "auto":
            kernels.set_isa(settings.isa)
    except kernels.NativeLibraryError as error:
        raise StartupError(f"the native kernels cannot be used: {error}") from error
    except ValueError as error:
        raise StartupError(f"--isa {settings.isa}: {error}", field="isa") from error
