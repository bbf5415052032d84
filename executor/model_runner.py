"""Runs steps: applies a plan's differences, copies blocks, computes one forward pass, samples."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from quire import kernels
from quire.errors import KvPoolError
from quire.executor.input_batch import PlanRows, build_input_batch, update_block_tables
from quire.executor.kv_cache import KvCache, check_layout, check_model
from quire.executor.model import Model
from quire.executor.readouts import plan_readouts
from quire.executor.sequence import SequenceTable
from quire.executor.structured import GrammarTable, StepMasks
from quire.executor.swap import SwapPool
from quire.internal.v1 import executor_pb2
from quire.kernels import SampledTokens, SamplingBatch
from quire.kv_pool import KvPool
from quire.step_counters import StepCounters
from quire.v1 import generate_pb2

logger = logging.getLogger(__name__)


class ModelRunner:
    """A model, the pool it writes to and the sequences it knows. Not thread-safe: one thread runs it."""

    def __init__(self, model: Model, rank: int = 0) -> None:
        self.model = model
        self.rank = rank
        self.sequences = SequenceTable(model.config.vocab_size)
        self._grammars = GrammarTable(model.config.vocab_size, model.folder / "tokenizer.json")
        self._cache: KvCache | None = None
        self._swap: SwapPool | None = None
        self._epoch: int | None = None

    def attach(self, request: executor_pb2.AttachKvPoolRequest) -> None:
        """Maps (or, on a device of its own, allocates) the pool and forgets every sequence.

        Raises KvPoolError for a pool that is missing, damaged, not as announced or of another model.
        """
        # First, since a device may not hold two pools.
        self.detach()
        self._cache = self._allocate(request) if request.HasField("device_memory") else self._map(request)
        self._swap = SwapPool.attach(request, self._cache, self.model.fingerprint, self.model.cache_group)
        self._epoch = request.epoch

    def detach(self) -> None:
        """Lets go of the pool and forgets every sequence."""
        self.sequences.clear()
        self._grammars.clear()
        if self._swap is not None:
            self._swap.close()
        self._cache, self._swap, self._epoch = None, None, None

    def execute(self, plan: executor_pb2.StepPlan, counters: StepCounters | None = None) -> executor_pb2.StepResult:
        """Computes one step; `counters` count its layers.

        Raises KvPoolError without a pool or for a plan of another epoch, and QuireError for a plan that
        contradicts what is known of its sequences.
        """
        started = time.monotonic_ns()
        cache = self._attached(plan.epoch)
        self.sequences.apply(plan)
        self._grammars.apply(plan)
        if self._swap is not None:
            self._swap.move(plan)
        _copy_blocks(plan, cache)
        rows = PlanRows.of(plan, self.sequences)
        update_block_tables(plan, rows, self.sequences)
        result = executor_pb2.StepResult(epoch=plan.epoch, step=plan.step, started_ns=started)
        if len(rows.slots):
            self._compute(rows, cache, result, counters)
        result.finished_ns = time.monotonic_ns()
        return result

    def _compute(
        self, rows: PlanRows, cache: KvCache, result: executor_pb2.StepResult, counters: StepCounters | None
    ) -> None:
        sequences, decoder = self.sequences, self.model.decoder
        with torch.inference_mode():
            batch = build_input_batch(
                rows, sequences, cache.block_size, self.model.device, rotary_lengths=decoder.needs_rotary_lengths
            )
            sampling = sequences.sampling_batch(batch.sampled) if len(batch.sampled) else None
            readouts = plan_readouts(
                sequences.readouts,
                rows.slots,
                rows.computed,
                rows.query_lengths,
                self.model.config.hidden_size,
                self.model.device,
            )
            states = None if readouts is None else readouts.states
            masks = None
            if (wait_for_masks := self._grammars.begin(batch.sampled, sequences)) is None or sampling is None:
                sampled = decoder.step(batch, cache, sampling, states, counters)
            else:
                logits = decoder.forward(batch, cache, states, counters)
                masks = wait_for_masks()
                sampling = masks.apply(sampling)
                sampled = kernels.sample(logits, sampling)
            if readouts is not None:
                readouts.report(decoder.head, result)
        if sampling is None or sampled is None:
            return
        sequences.append(batch.sampled, sampled.token_ids)
        result.slots = batch.sampled.astype("<u4").tobytes()
        result.token_ids = sampled.token_ids.tobytes()
        if masks is not None:
            result.failures.extend(_failures(batch.sampled, masks, sampled))
        if impossible := np.count_nonzero(sampled.impossible):
            logger.warning("step %d: no token of %d sequences has a logit that is a number", result.step, impossible)
        if sampled.logprobs is not None:
            result.logprobs.extend(_logprobs(sampling, sampled))

    def _attached(self, epoch: int) -> KvCache:
        if self._cache is None:
            raise KvPoolError("no KV pool is attached")
        if epoch != self._epoch:
            raise KvPoolError(f"the plan is of epoch {epoch}, the attached KV pool of epoch {self._epoch}")
        return self._cache

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

    def _allocate(self, request: executor_pb2.AttachKvPoolRequest) -> KvCache:
        model = self.model
        if model.device.type == "cpu":
            raise KvPoolError("an executor on the CPU needs a KV pool that processes share")
        return KvCache.allocate(
            request.num_blocks, request.block_size, model.cache_group, model.kv_cache_dtype, model.device
        )


def _copy_blocks(plan: executor_pb2.StepPlan, cache: KvCache) -> None:
    if plan.copy_sources:
        cache.copy_blocks(
            np.frombuffer(plan.copy_sources, dtype="<u4").astype(np.int64),
            np.frombuffer(plan.copy_destinations, dtype="<u4").astype(np.int64),
        )


def _failures(
    slots: NDArray[np.int64], masks: StepMasks, sampled: SampledTokens
) -> Iterator[executor_pb2.SequenceFailure]:
    """One message for each row whose grammar failed, or which has no token that its grammar allows."""
    nothing_left = sampled.impossible & (masks.mask_rows >= 0)
    for row in sorted({*masks.failures, *np.flatnonzero(nothing_left).tolist()}):
        reason = masks.failures.get(row, "no token that its grammar allows has a logit that is a number")
        yield executor_pb2.SequenceFailure(slot=slots[row], message=f"structured output failed: {reason}")


def _logprobs(sampling: SamplingBatch, sampled: SampledTokens) -> Iterator[executor_pb2.SampledLogprobs]:
    """One message for each row that asked."""
    assert sampled.logprobs is not None and sampled.top_token_ids is not None and sampled.top_logprobs is not None
    for row, count in enumerate(sampling.rows["num_logprobs"].tolist()):
        if count >= 0:
            yield executor_pb2.SampledLogprobs(
                row=row,
                logprobs=generate_pb2.TokenLogprobs(
                    logprob=sampled.logprobs[row],
                    top_token_ids=sampled.top_token_ids[row, :count].tolist(),
                    top_logprobs=sampled.top_logprobs[row, :count].tolist(),
                ),
            )
