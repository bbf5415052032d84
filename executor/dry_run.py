"""Runs the largest steps once, before the KV pool is there, and measures what they leave for it.

Twice: as many new tokens as a step may have, and one more token for as many sequences as there may be; all rows are
sampled, with a filter that sorts. The pool is a few blocks, which all sequences share: what they read is nonsense, but
takes the memory and the kernels that sense would. So the first request finds them compiled, too.
"""

from __future__ import annotations

import logging
from typing import Final

import numpy as np

from quire.columns import pack_u32
from quire.errors import StartupError
from quire.executor.kv_cache import KvCache
from quire.executor.memory import MemoryProbe, MemoryReport
from quire.executor.model import Model
from quire.executor.model_runner import ModelRunner
from quire.executor.step_limits import StepLimits
from quire.internal.v1 import executor_pb2
from quire.v1 import generate_pb2

logger = logging.getLogger(__name__)

_NUM_BLOCKS: Final = 8
_EPOCH: Final = 0
# What the driver keeps for a graph besides the buffers of its kernels: a guess, a few hundred launches of some KiB.
# The log says what each capture took.
_BYTES_PER_GRAPH: Final = 4 << 20


def measure_memory(runner: ModelRunner, limits: StepLimits, memory: MemoryProbe, free_at_start: int) -> MemoryReport:
    """What a device of its own has left for the KV pool.

    Args:
        runner: the one that will serve; it has no pool yet, and none afterwards.
        limits: of steps.
        memory: of the runner's device.
        free_at_start: what was free before the weights were loaded.

    Raises:
        StartupError: the largest step does not fit.
    """
    model = runner.model
    prefill, decode = largest_steps(limits, model.max_model_len)
    try:
        cache = KvCache.allocate(_NUM_BLOCKS, limits.block_size, model.cache_group, model.kv_cache_dtype, model.device)
        runner.adopt(cache, _EPOCH)
        del cache
        peaks = [_peak(memory, runner, plan) for plan in (prefill, decode)]
    except RuntimeError as error:
        # torch's own error is one; Triton and cuBLAS tell it in words.
        if "out of memory" not in str(error).lower():
            raise
        raise StartupError(
            f"the largest step does not fit the memory of {model.device} beside the weights; lower "
            f"--max-num-batched-tokens ({limits.max_num_batched_tokens}) or --max-num-seqs ({limits.max_num_seqs})",
            field="max_num_batched_tokens",
        ) from error
    finally:
        runner.detach()
    kept = memory.start_measuring()  # what steps took is given back: the few blocks and the columns' buffers too
    held = 0 if runner.device_memory is None else runner.device_memory.held_bytes()
    return _report(model, limits, memory, free_at_start, held, max(peaks) - kept, peaks[-1] - kept)


def largest_steps(limits: StepLimits, max_model_len: int) -> tuple[executor_pb2.StepPlan, executor_pb2.StepPlan]:
    """A step of as many new tokens as may be, and the decode step of the same sequences after it."""
    # One token is left for the second step.
    lengths = _prompt_lengths(limits, max(1, max_model_len - 1))
    num_blocks = -(-(lengths + 1) // limits.block_size)
    new_sequences = [_new_sequence(slot, length) for slot, length in enumerate(lengths.tolist())]
    first = _plan(1, np.zeros_like(lengths), lengths, kept=np.zeros_like(lengths), appended=num_blocks)
    first.new_sequences.extend(new_sequences)
    ones = np.ones_like(lengths)
    return first, _plan(2, lengths, ones, kept=num_blocks, appended=np.zeros_like(lengths))


def _peak(memory: MemoryProbe, runner: ModelRunner, plan: executor_pb2.StepPlan) -> int:
    """The most that torch holds during a step."""
    memory.start_measuring()
    runner.execute(plan)
    return memory.peak_bytes()


def _report(
    model: Model, limits: StepLimits, memory: MemoryProbe, free_at_start: int, held: int, activations: int, decode: int
) -> MemoryReport:
    graphs = 0
    if sizes := limits.graph_sizes:
        # Their logits, their pool (a forward pass without the sampling that was measured beside it), and themselves.
        graphs = sizes[-1] * model.config.vocab_size * 4 + decode + len(sizes) * _BYTES_PER_GRAPH
    free, total = memory.free_bytes(), memory.total_bytes()
    taken = free_at_start - free
    # What is held of an executor before this one is let go of for another pool.
    free += held
    logger.info(
        "%.2f of %.2f GiB are free; the largest step takes %.2f GiB, graphs %.2f GiB, the rest is for the KV pool",
        free / 2**30,
        total / 2**30,
        activations / 2**30,
        graphs / 2**30,
    )
    return MemoryReport(
        available_bytes=max(0, free - activations - graphs),
        total_bytes=total,
        overhead_bytes=max(0, taken - model.decoder.num_bytes) + activations + graphs,
    )


def _prompt_lengths(limits: StepLimits, longest: int) -> np.ndarray:
    """[rows]: one token for each, and what is left for the first ones."""
    rows = min(limits.max_num_seqs, limits.max_num_batched_tokens)
    # Of the tokens behind each row's first, as many as the rows before it cannot have.
    rest = limits.max_num_batched_tokens - rows - np.arange(rows) * (longest - 1)
    return 1 + np.clip(rest, 0, longest - 1)


def _new_sequence(slot: int, length: int) -> executor_pb2.NewSequence:
    return executor_pb2.NewSequence(
        slot=slot,
        prompt_token_ids=bytes(4 * length),
        sampling_params=generate_pb2.SamplingParams(temperature=1.0, top_p=0.9, seed=slot),
    )


def _plan(
    step: int, computed: np.ndarray, query_lengths: np.ndarray, *, kept: np.ndarray, appended: np.ndarray
) -> executor_pb2.StepPlan:
    rows = len(computed)
    return executor_pb2.StepPlan(
        epoch=_EPOCH,
        step=step,
        slots=pack_u32(range(rows)),
        computed_tokens=pack_u32(computed),
        query_lengths=pack_u32(query_lengths),
        samples=bytes([1]) * rows,
        block_tables=[
            executor_pb2.BlockTableUpdate(
                cache_group=0,
                kept=pack_u32(kept),
                appended=pack_u32(appended),
                block_ids=pack_u32(np.arange(appended.sum()) % _NUM_BLOCKS),
            )
        ],
    )
