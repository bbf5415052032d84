"""Steps on a device that computes behind the host's back: launched, and finished in order once the device is done.

Nothing of a step waits for the one before it on the host, but for rows that `needs_known_tokens` tells of. The token
that an earlier step samples is taken from the device's own table, `last_tokens` by slot: a column says ~slot, which is
negative, in the place of an id.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire import kernels
from quire.executor.decoder import Decoder
from quire.executor.device import AsyncDevice, Completion
from quire.executor.graphs import GraphLadder
from quire.executor.input_batch import PlanRows, build_input_batch
from quire.executor.kv_cache import KvCache
from quire.executor.last_tokens import LastTokens
from quire.executor.model import Model
from quire.executor.pending_step import PendingStep, Step
from quire.executor.readouts import StepReadouts, plan_readouts
from quire.executor.sequence import SequenceTable, UnknownTokens
from quire.executor.step_buffers import StagedStep, StepBuffers
from quire.executor.step_report import report_sampled
from quire.executor.step_work import StepWork
from quire.executor.structured import GrammarTable, StepMasks
from quire.internal.v1 import executor_pb2
from quire.kernels import SamplingBatch, WorkShape

logger = logging.getLogger(__name__)

# As many as a scheduler keeps in flight: one that is computed and one behind it.
MAX_IN_FLIGHT: Final = 2


def needs_known_tokens(rows: PlanRows, sequences: SequenceTable, grammars: GrammarTable) -> bool:
    """Whether a step cannot be launched before the host knows which tokens the steps in flight sample.

    So it is for sequences that have such a token and are sampled under a grammar, under penalties or bad words; and
    for one of which several tokens are computed at once, since the device keeps the last alone.
    """
    unknown = sequences.num_unknown[rows.slots] > 0
    if not np.count_nonzero(unknown):
        return False
    if np.count_nonzero(unknown & (rows.query_lengths > 1)):
        return True
    slots = rows.slots[unknown & rows.samples]
    return len(slots) > 0 and (sequences.reads_history(slots) or grammars.constrain(slots))


class DeviceSteps:
    """See Steps. Also what a CUDA graph is made of (`graphs.DecodeStep`)."""

    max_in_flight: Final = MAX_IN_FLIGHT

    def __init__(
        self,
        model: Model,
        sequences: SequenceTable,
        grammars: GrammarTable,
        device: AsyncDevice,
        graph_sizes: Sequence[int] = (),
    ) -> None:
        """`graph_sizes`: rows that decode steps are padded to, rising, where the device can capture graphs."""
        assert isinstance(model.decoder, Decoder)
        self._model = model
        self._decoder = model.decoder
        self._sequences = sequences
        self._grammars = grammars
        self._device = device
        self._graph_sizes = graph_sizes
        self._in_flight: deque[_LaunchedStep] = deque()
        self._attached: _Attached | None = None
        self._last_tokens = LastTokens(device)
        # The first step that failed; what would come after it builds on it.
        self._failure: Exception | None = None
        # When the device was last seen to be done with a step.
        self._finished_ns = 0

    @property
    def completion_fd(self) -> int:
        """See Steps."""
        return self._device.completion_fd

    def attach(self, cache: KvCache) -> None:
        """See Steps."""
        assert not self._in_flight
        # Whoever filled the pool did so outside of our stream, which does not wait for others.
        self._device.synchronize()
        self._failure = None
        model, sizes = self._model, self._graph_sizes
        buffers = StepBuffers(
            self._device,
            # And one for a graph's padding.
            MAX_IN_FLIGHT + 1,
            max_blocks=-(-model.max_model_len // cache.block_size),
            largest_size=sizes[-1] if sizes else 0,
            rotary_lengths=self._decoder.needs_rotary_lengths,
            work=self._work_shape(),
            max_model_len=model.max_model_len,
        )
        capture = self._device.capture() if sizes else None
        graphs = None if capture is None else GraphLadder(self, model.config.vocab_size, sizes, capture)
        self._attached = _Attached(cache, buffers, graphs)

    def detach(self) -> None:
        """See Steps."""
        self.drain()
        if self._attached is not None and self._attached.graphs is not None:
            self._attached.graphs.drop()
        self._attached = None

    def launch(self, step: Step) -> PendingStep:
        """See Steps."""
        assert self._attached is not None
        if needs_known_tokens(step.rows, self._sequences, self._grammars):
            self.finish_through(None)
        while len(self._in_flight) >= MAX_IN_FLIGHT:
            self.finish_through(self._in_flight[0])
        if self._failure is not None:
            raise self._failure
        has_rows = len(step.rows.slots) > 0
        launched = self._launch(step, self._attached) if has_rows else self._launch_copies(step, self._attached.cache)
        self._in_flight.append(launched)
        return launched

    def drain(self) -> None:
        """See Steps."""
        try:
            self._device.mark().wait()
        except RuntimeError as error:
            # Whoever waited for a result has been told; nobody waits for these.
            logger.warning("%d steps in flight ended with the device: %s", len(self._in_flight), error)
        self._in_flight.clear()

    def use_pause(self, *, idle: bool) -> bool:
        """Between two steps: captures a graph if one is wanted. See `GraphLadder.capture_next`."""
        if self._attached is None or (graphs := self._attached.graphs) is None:
            return False
        captured: list[bool] = []
        self._device.submit(lambda: captured.append(graphs.capture_next(idle=idle)))
        if captured == [False]:
            return False
        self._device.mark().wait()
        if (padding := self._attached.padding) is not None:
            padding.release()
            self._attached.padding = None
        return captured == [True]

    def stage_padding(self, size: int) -> None:
        """See graphs.DecodeStep."""
        assert self._attached is not None
        self._attached.padding = padding = self._attached.buffers.stage_padding(size)
        padding.upload()

    def forward(self, size: int, logits: Tensor) -> None:
        """See graphs.DecodeStep."""
        assert self._attached is not None
        batch = self._attached.buffers.decode_batch(size)
        self._decoder.forward(batch, self._attached.cache, out=logits)

    def _launch_copies(self, step: Step, cache: KvCache) -> _LaunchedStep:
        """A step that computes nothing. It is answered in its turn, when what it copies is there."""
        if step.copies is not None:
            self._device.submit(partial(cache.copy_blocks, *step.copies))
        return _LaunchedStep(self, step.result, self._device.mark())

    def _launch(self, step: Step, attached: _Attached) -> _LaunchedStep:
        sequences, rows = self._sequences, step.rows
        batch = build_input_batch(
            rows,
            sequences,
            attached.cache.block_size,
            self._device.torch_device,
            rotary_lengths=self._decoder.needs_rotary_lengths,
        )
        slots = batch.sampled
        sampling = sequences.sampling_batch(slots) if len(slots) else None
        readouts = plan_readouts(sequences.readouts, rows.slots, rows.computed, rows.query_lengths, self._new_states)
        wait_for_masks = self._grammars.begin(slots, sequences)
        self._last_tokens.reserve(len(sequences.num_tokens))

        size = None
        if attached.graphs is not None and readouts is None and len(slots) == len(batch.arrays.token_ids):
            size = attached.graphs.padded_size(len(slots))
        staged = attached.buffers.stage(batch.arrays, slots, _other_columns(step, slots, readouts), size)
        work = StepWork(
            self._decoder,
            attached.cache,
            None if size is None else attached.graphs,
            staged,
            self._last_tokens.table(),
            None if readouts is None else replace(readouts.states, staged_rows=staged.others["state_rows"]),
            step.counters,
        )
        self._device.submit(work.compute)
        masks = None
        if sampling is not None:
            if wait_for_masks is not None:
                # Computed beside the forward pass.
                masks = wait_for_masks()
                sampling = masks.apply(sampling)
            self._device.submit(partial(work.sample, sampling))
        unknown = sequences.append_unknown(slots) if len(slots) else None
        return _LaunchedStep(self, step.result, self._device.mark(), staged, work, readouts, sampling, masks, unknown)

    def _work_shape(self) -> WorkShape | None:
        config, device = self._model.config, self._device.torch_device
        if kernels.implementation_for(device) != "triton":
            return None
        return kernels.work_shape(config.num_heads, config.num_kv_heads, device)

    def _new_states(self, num_rows: int) -> Tensor:
        hidden_size = self._model.config.hidden_size
        return self._device.device_memory(4 * num_rows * hidden_size).view(torch.float32).view(num_rows, hidden_size)

    def finish_through(self, last: _LaunchedStep | None) -> None:
        """Finishes the steps in flight in their order: up to that one, or all. What they fail with is kept."""
        while self._in_flight and (last is None or not last.is_finished):
            step = self._in_flight.popleft()
            try:
                self._finish(step)
            except Exception as error:
                step.failure = error
                self._failure = self._failure or error
            step.is_finished = True

    def _finish(self, step: _LaunchedStep) -> None:
        """Takes in what the device has done; waits for it if need be."""
        step.completion.wait()
        result = step.plan_result
        if step.work is not None and step.sampling is not None and step.unknown is not None:
            sampled = step.work.fetched()
            self._sequences.fill(step.unknown, sampled.token_ids)
            report_sampled(result, step.unknown.slots, step.sampling, sampled, step.masks)
        if step.readouts is not None:
            # Rare, so it may wait: what a prompt's logprobs are made of is computed behind the steps in flight.
            self._device.submit(partial(step.readouts.report, self._decoder.head, result))
            self._device.mark().wait()
        if step.staged is not None:
            step.staged.release()
        # The device began it when the step before it was over.
        result.started_ns = max(result.started_ns, self._finished_ns)
        result.finished_ns = self._finished_ns = time.monotonic_ns()


@dataclass(slots=True, eq=False)
class _Attached:
    """What belongs to one KV pool."""

    cache: KvCache
    buffers: StepBuffers
    graphs: GraphLadder | None
    # Columns that a capture reads.
    padding: StagedStep | None = None


@dataclass(slots=True, eq=False)
class _LaunchedStep:
    """See PendingStep."""

    steps: DeviceSteps
    plan_result: executor_pb2.StepResult
    completion: Completion
    # None for a step that computes nothing.
    staged: StagedStep | None = None
    work: StepWork | None = None
    readouts: StepReadouts | None = None
    # None where nothing is sampled.
    sampling: SamplingBatch | None = None
    masks: StepMasks | None = None
    unknown: UnknownTokens | None = None
    is_finished: bool = False
    failure: Exception | None = None

    @property
    def is_done(self) -> bool:
        return self.is_finished or self.completion.is_done

    def result(self) -> executor_pb2.StepResult:
        self.steps.finish_through(self)
        if self.failure is not None:
            raise self.failure
        return self.plan_result


def _other_columns(
    step: Step, slots: NDArray[np.int64], readouts: StepReadouts | None
) -> dict[str, NDArray[np.int64] | NDArray[np.int32]]:
    """What StepWork wants beside the batch."""
    columns: dict[str, NDArray[np.int64] | NDArray[np.int32]] = {}
    if len(slots):
        columns["sampled_slots"] = slots
    if step.copies is not None:
        columns["copy_sources"], columns["copy_destinations"] = step.copies
    if readouts is not None:
        columns["state_rows"] = readouts.states.rows
    return columns
