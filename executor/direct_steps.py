"""Steps on a device that computes while it is being told what to: the CPU."""

from __future__ import annotations

import time
from typing import Final

import torch
from torch import Tensor

from quire import kernels
from quire.executor.input_batch import build_input_batch
from quire.executor.kv_cache import KvCache
from quire.executor.model import Model
from quire.executor.pending_step import FinishedStep, PendingStep, Step
from quire.executor.readouts import plan_readouts
from quire.executor.sequence import SequenceTable
from quire.executor.step_report import report_sampled
from quire.executor.structured import GrammarTable


class DirectSteps:
    """See Steps."""

    max_in_flight: Final = 1
    completion_fd: Final = None

    def __init__(self, model: Model, sequences: SequenceTable, grammars: GrammarTable) -> None:
        self._model = model
        self._sequences = sequences
        self._grammars = grammars
        self._cache: KvCache | None = None

    def attach(self, cache: KvCache) -> None:
        """See Steps."""
        self._cache = cache

    def detach(self) -> None:
        """See Steps."""
        self._cache = None

    def launch(self, step: Step) -> PendingStep:
        """Computes it."""
        assert self._cache is not None
        if step.copies is not None:
            self._cache.copy_blocks(*step.copies)
        if len(step.rows.slots):
            self._compute(step, self._cache)
        step.result.finished_ns = time.monotonic_ns()
        return FinishedStep(step.result)

    def drain(self) -> None:
        """Nothing is ever in flight."""

    def use_pause(self, *, idle: bool) -> bool:
        """There is nothing to do."""
        return False

    def _compute(self, step: Step, cache: KvCache) -> None:
        sequences, model, rows = self._sequences, self._model, step.rows
        decoder = model.decoder
        with torch.inference_mode():
            batch = build_input_batch(
                rows, sequences, cache.block_size, model.device, rotary_lengths=decoder.needs_rotary_lengths
            )
            sampling = sequences.sampling_batch(batch.sampled) if len(batch.sampled) else None
            readouts = plan_readouts(
                sequences.readouts, rows.slots, rows.computed, rows.query_lengths, self._new_states
            )
            states = None if readouts is None else readouts.states
            masks = None
            if (wait_for_masks := self._grammars.begin(batch.sampled, sequences)) is None or sampling is None:
                sampled = decoder.step(batch, cache, sampling, states, step.counters)
            else:
                logits = decoder.forward(batch, cache, states, step.counters)
                masks = wait_for_masks()
                sampling = masks.apply(sampling)
                sampled = kernels.sample(logits, sampling)
            if readouts is not None:
                readouts.report(decoder.head, step.result)
        if sampling is None or sampled is None:
            return
        sequences.append(batch.sampled, sampled.token_ids)
        report_sampled(step.result, batch.sampled, sampling, sampled, masks)

    def _new_states(self, num_rows: int) -> Tensor:
        return torch.empty(num_rows, self._model.config.hidden_size, device=self._model.device)
