"""Quire's executor in this process: its model runner, given the plans that a scheduler would send."""

import gc
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from gpu_bench.engine import Workload
from gpu_bench.machine import synchronize
from gpu_bench.shapes import RandomCheckpoint
from quire.columns import pack_u32
from quire.config import ExecutorSettings
from quire.executor.kv_cache import KvCache
from quire.executor.model import DTYPES, load_model
from quire.executor.start import make_runner, set_up_kernels
from quire.executor.step_limits import StepLimits
from quire.internal.v1 import executor_pb2
from quire.v1 import generate_pb2

_BLOCK_SIZE = 16
_EPOCH = 0


class Quire:
    """See Engine. Sequences keep their blocks, so that a prompt is computed once and decoded from many times."""

    def __init__(
        self, folder: Path, workload: Workload, device: torch.device, dtype: str, **settings: str | bool
    ) -> None:
        """Raises StartupError for settings that the device cannot do."""
        self._workload = workload
        self._device = device
        given = {
            "model": str(folder),
            "device": device.type,
            "dtype": dtype,
            "listen": "unix:/nowhere",
            "max_num_seqs": max(workload.batches),
            "max_num_batched_tokens": workload.budget,
            "block_size": _BLOCK_SIZE,
            "max_model_len": 2 * max(workload.context, workload.prefill),
            **settings,
        }
        loaded = ExecutorSettings.load(given)
        set_up_kernels(loaded)
        self.model = load_model(loaded, lambda _: RandomCheckpoint(DTYPES[dtype], device))
        self._runner = make_runner(self.model, StepLimits.of(loaded))
        longest = workload.context + workload.warm_up + workload.steps + 1
        self._blocks_each = -(-longest // _BLOCK_SIZE)
        self._prefill_blocks = -(-(workload.prefill + 1) // _BLOCK_SIZE)
        self._step = 0
        # The block tables of as many sequences as the pool is for; None without a pool.
        self._tables: np.ndarray | None = None

    def decode_seconds(self, batch: int) -> float:
        if self._tables is None or len(self._tables) != batch:
            self._attach(batch)
            self._compute_prompts()
        self._run(self._decode_plans(batch, self._workload.warm_up))
        # Whatever graphs were asked for, as the worker does when it has nothing else to do.
        while self._runner.use_pause(idle=True):
            pass
        plans = self._decode_plans(batch, self._workload.warm_up + self._workload.steps)
        self._run(plans[: self._workload.warm_up])
        started = time.perf_counter()
        self._run(plans[self._workload.warm_up :])
        return (time.perf_counter() - started) / self._workload.steps

    def prefill_seconds(self) -> float:
        if self._tables is None:
            self._attach(1)
        length = self._workload.prefill
        plan = self._plan(
            [length],
            computed=[0],
            tables=[np.arange(self._prefill_blocks)],
            new=[self._new_sequence(0, length)],
        )
        started = time.perf_counter()
        self._run([plan])
        return time.perf_counter() - started

    def make_room(self) -> None:
        self._runner.detach()
        self._tables = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        self.make_room()
        del self._runner, self.model
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _attach(self, batch: int) -> None:
        """A pool of as many sequences, and of another behind them for the prefill. It has been in use for long."""
        self.make_room()
        model, num_blocks = self.model, batch * self._blocks_each + self._prefill_blocks
        cache = KvCache.allocate(num_blocks, _BLOCK_SIZE, model.cache_group, model.kv_cache_dtype, model.device)
        self._runner.adopt(cache, _EPOCH)
        shuffled = np.random.default_rng(0).permutation(batch * self._blocks_each) + self._prefill_blocks
        self._tables = shuffled.reshape(batch, self._blocks_each)

    def _compute_prompts(self) -> None:
        """All prompts, as many at once as a step may hold, in chunks where one is longer."""
        assert self._tables is not None
        context, budget = self._workload.context, self._workload.budget
        batch, together = len(self._tables), max(1, budget // context)
        for first in range(0, batch, together):
            chosen = range(first, min(batch, first + together))
            rows, tables = len(chosen), list(self._tables[chosen.start : chosen.stop])
            for start in range(0, context, budget):
                count = min(budget, context - start)
                new = [self._new_sequence(slot, context) for slot in chosen] if start == 0 else []
                self._run([self._plan([count] * rows, [start] * rows, tables, new, slots=chosen)])

    def _decode_plans(self, batch: int, count: int) -> list[executor_pb2.StepPlan]:
        """Sequences that have all of their prompt but its last token in the pool, and go on from there."""
        assert self._tables is not None
        context = self._workload.context
        new = [self._new_sequence(slot, context) for slot in range(batch)]
        plans = [self._plan([1] * batch, [context - 1] * batch, list(self._tables), new)]
        for step in range(1, count):
            plans.append(self._plan([1] * batch, [context - 1 + step] * batch, None, []))
        return plans

    def _plan(
        self,
        query_lengths: list[int],
        computed: list[int],
        tables: Sequence[np.ndarray] | None,
        new: list[executor_pb2.NewSequence],
        slots: range | None = None,
    ) -> executor_pb2.StepPlan:
        """`tables` are the rows' block tables, or None where they stay."""
        self._step += 1
        rows = len(query_lengths)
        lengths = {sequence.slot: len(sequence.prompt_token_ids) // 4 for sequence in new}
        slots = range(rows) if slots is None else slots
        ends = zip(slots, computed, query_lengths, strict=True)
        samples = bytes(start + count >= lengths.get(slot, self._workload.context) for slot, start, count in ends)
        kept = [0 if tables is not None else self._blocks_each] * rows
        appended = [] if tables is None else [len(table) for table in tables]
        return executor_pb2.StepPlan(
            epoch=_EPOCH,
            step=self._step,
            new_sequences=new,
            slots=pack_u32(slots),
            computed_tokens=pack_u32(computed),
            query_lengths=pack_u32(query_lengths),
            samples=samples,
            block_tables=[
                executor_pb2.BlockTableUpdate(
                    kept=pack_u32(kept),
                    appended=pack_u32(appended or [0] * rows),
                    block_ids=pack_u32(np.concatenate(tables)) if tables is not None else b"",
                )
            ],
        )

    def _new_sequence(self, slot: int, length: int) -> executor_pb2.NewSequence:
        prompt = self._workload.prompt(slot, length, self.model.config.vocab_size)
        return executor_pb2.NewSequence(
            slot=slot,
            prompt_token_ids=pack_u32(prompt),
            sampling_params=generate_pb2.SamplingParams(temperature=0.0, top_p=1.0, repetition_penalty=1.0),
        )

    def _run(self, plans: list[executor_pb2.StepPlan]) -> None:
        """Launches plans as results allow, as the worker does, and waits for the last."""
        pending = deque[object]()
        for plan in plans:
            pending.append(self._runner.launch(plan))
            while len(pending) >= self._runner.max_in_flight:
                pending.popleft().result()
        while pending:
            pending.popleft().result()
        synchronize(self._device)
