"""What a process does before it runs steps: kernels are set up, the model is loaded, memory is measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch

from quire import kernels
from quire.config import ExecutorSettings
from quire.device_pool.client import wake
from quire.errors import StartupError
from quire.executor.cuda_setup import set_up_cuda
from quire.executor.device import async_device
from quire.executor.dry_run import measure_memory
from quire.executor.memory import CudaMemory, MemoryReport, host_memory
from quire.executor.model import Model, choose_device, load_model
from quire.executor.model_runner import ModelRunner
from quire.executor.processors import usable_processors
from quire.executor.step_limits import StepLimits

MeasureMemory: TypeAlias = Callable[[], MemoryReport]


def set_up_kernels(settings: ExecutorSettings) -> None:
    """What the kernels of this process compute with. Raises StartupError for what the machine cannot do."""
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


def start_runner(settings: ExecutorSettings) -> tuple[ModelRunner, MeasureMemory]:
    """The model, ready to run, and how to measure the memory that its KV pool may take."""
    device, limits = choose_device(settings.device), StepLimits.of(settings)
    if device.type == "cpu":
        return make_runner(load_model(settings), limits), host_memory
    if settings.device_pool is not None:
        wake(settings.device_pool)  # it starts while the model is loaded here
    set_up_cuda(settings.runtime_dir)
    memory = CudaMemory(device)
    free_at_start = memory.free_bytes()
    runner = make_runner(load_model(settings), limits, settings.device_pool)
    report = measure_memory(runner, limits, memory, free_at_start)
    return runner, lambda: report


def make_runner(model: Model, limits: StepLimits, device_pool: Path | None = None) -> ModelRunner:
    """A runner of steps on the model's device. Raises StartupError where that cannot be used."""
    device = async_device(model.device)
    return ModelRunner(model, device=device, graph_sizes=limits.graph_sizes, device_pool=device_pool)
