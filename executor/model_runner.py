"""Runs steps: applies a plan's differences, copies blocks, computes one forward pass, samples."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quire.errors import KvPoolError
from quire.executor.device import AsyncDevice, async_device
from quire.executor.device_memory import DeviceMemory
from quire.executor.device_steps import DeviceSteps
from quire.executor.direct_steps import DirectSteps
from quire.executor.input_batch import PlanRows, update_block_tables
from quire.executor.kv_cache import KvCache, check_layout, check_model
from quire.executor.model import Model
from quire.executor.pending_step import PendingStep, Step, Steps
from quire.executor.sequence import SequenceTable
from quire.executor.structured import GrammarTable
from quire.executor.swap import SwapPool
from quire.internal.v1 import executor_pb2
from quire.kv_pool import KvPool
from quire.step_counters import StepCounters


class ModelRunner:
    """A model, the pool it writes to and the sequences it knows. Not thread-safe: one thread runs it."""

    def __init__(
        self,
        model: Model,
        rank: int = 0,
        device: AsyncDevice | None = None,
        graph_sizes: Sequence[int] = (),
        device_pool: Path | None = None,
    ) -> None:
        """
        Args:
            model: what is computed.
            rank: of this part of the model.
            device: how steps get to the model's; None: as the model's device needs.
            graph_sizes: rows of the decode steps that are captured as graphs, rising, where the device can do that.
            device_pool: the socket of the process that holds the memory of a pool on a device of its own.
        """
        self.model = model
        self.device_memory = None if model.device.type == "cpu" else DeviceMemory(model.device, device_pool)
        self.rank = rank
        self._device = device or async_device(model.device)
        self.sequences = SequenceTable(model.config.vocab_size)
        self._grammars = GrammarTable(model.config.vocab_size, model.folder / "tokenizer.json")
        self._steps: Steps = (
            DirectSteps(model, self.sequences, self._grammars)
            if self._device is None
            else DeviceSteps(model, self.sequences, self._grammars, self._device, graph_sizes)
        )
        self._cache: KvCache | None = None
        self._swap: SwapPool | None = None
        self._epoch: int | None = None

    @property
    def max_in_flight(self) -> int:
        """Steps that may be launched before the first is over."""
        return self._steps.max_in_flight

    @property
    def completion_fd(self) -> int | None:
        """Readable when a step may be over; None where all of them are when they have been launched."""
        return self._steps.completion_fd

    def attach(self, request: executor_pb2.AttachKvPoolRequest) -> bool:
        """Maps the pool and forgets every sequence; returns whether it holds what was written to it before.

        Raises KvPoolError for a pool that is missing, damaged, not as announced or of another model.
        """
        # First, since a device may not hold two pools.
        self.detach()
        cache, has_content = (
            self._provide(request) if request.HasField("executor_memory") else (self._map(request), True)
        )
        model = self.model
        self._swap = SwapPool.attach(request, cache, model.fingerprint, model.cache_group, self._device)
        self.adopt(cache, request.epoch)
        return has_content

    def adopt(self, cache: KvCache, epoch: int) -> None:
        """Works on a pool that is there."""
        self._steps.attach(cache)
        self._cache, self._epoch = cache, epoch

    def detach(self) -> None:
        """Lets go of the pool, once nothing is in flight, and forgets every sequence."""
        self._steps.detach()
        self.sequences.clear()
        self._grammars.clear()
        if self._swap is not None:
            self._swap.close()
        self._cache, self._swap, self._epoch = None, None, None

    def close(self) -> None:
        """Lets go of the pool and of the device. Nothing is launched after this."""
        self.detach()
        if self._device is not None:
            self._device.close()

    def launch(self, plan: executor_pb2.StepPlan, counters: StepCounters | None = None) -> PendingStep:
        """Begins a step, behind those in flight; on a CPU it is over then. `counters` count its layers.

        At most `max_in_flight` steps run: it waits for the oldest where there would be more, and for all of them where
        `needs_known_tokens` says so.

        Raises KvPoolError without a pool or for a plan of another epoch, and QuireError for a plan that
        contradicts what is known of its sequences.
        """
        started = time.monotonic_ns()
        self._check_attached(plan.epoch)
        self.sequences.apply(plan)
        self._grammars.apply(plan)
        if self._swap is not None:
            self._swap.move(plan)
        rows = PlanRows.of(plan, self.sequences)
        update_block_tables(plan, rows, self.sequences)
        result = executor_pb2.StepResult(epoch=plan.epoch, step=plan.step, started_ns=started)
        return self._steps.launch(Step(rows, _copies(plan), result, counters))

    def execute(self, plan: executor_pb2.StepPlan, counters: StepCounters | None = None) -> executor_pb2.StepResult:
        """Computes one step and all before it. Raises as `launch` and `PendingStep.result`."""
        return self.launch(plan, counters).result()

    def drain(self) -> None:
        """Waits for the steps in flight, whose results nobody wants any more."""
        self._steps.drain()

    def use_pause(self, *, idle: bool) -> bool:
        """Between two steps, `idle` if none is in flight or waits: does what makes later steps faster, if anything.

        Returns whether that took time.
        """
        return self._steps.use_pause(idle=idle)

    def _check_attached(self, epoch: int) -> None:
        if self._cache is None:
            raise KvPoolError("no KV pool is attached")
        if epoch != self._epoch:
            raise KvPoolError(f"the plan is of epoch {epoch}, the attached KV pool of epoch {self._epoch}")

    def _map(self, request: executor_pb2.AttachKvPoolRequest) -> KvCache:
        if self.model.device.type != "cpu":
            raise KvPoolError(f"an executor on {self.model.device} needs its KV pool in device memory")
        if not request.HasField("handover_socket"):
            raise KvPoolError("the request names no home of the KV pool")
        # Leaving the block closes the descriptor; the cache's tensors keep the mapping.
        with KvPool.attach_handover(Path(request.handover_socket)) as pool:
            check_layout(
                pool.layout,
                num_blocks=request.num_blocks,
                block_size=request.block_size,
                epoch=request.epoch,
            )
            check_model(pool.layout, fingerprint=self.model.fingerprint, group=self.model.cache_group, rank=self.rank)
            return KvCache.map(pool, self.rank, self.model.cache_group, self.model.kv_cache_dtype)

    def _provide(self, request: executor_pb2.AttachKvPoolRequest) -> tuple[KvCache, bool]:
        if self.device_memory is None:
            raise KvPoolError("an executor on the CPU needs a KV pool that processes share")
        group, block_size = self.model.cache_group, request.block_size
        num_bytes = request.num_blocks * block_size * group.bytes_per_token
        held = self.device_memory.attach(request.epoch, num_bytes, is_new=request.executor_memory.is_new)
        dtype = self.model.kv_cache_dtype
        if held is None:
            return KvCache.allocate(request.num_blocks, block_size, group, dtype, self.model.device), False
        memory, has_content = held
        return KvCache(memory.view(request.num_blocks, -1), group, block_size, dtype), has_content


def _copies(plan: executor_pb2.StepPlan) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    if not plan.copy_sources:
        return None
    return (
        np.frombuffer(plan.copy_sources, dtype="<u4").astype(np.int64),
        np.frombuffer(plan.copy_destinations, dtype="<u4").astype(np.int64),
    )
