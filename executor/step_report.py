"""What was sampled in a step → its StepResult."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from quire.executor.structured import StepMasks
from quire.internal.v1 import executor_pb2
from quire.kernels import SampledTokens, SamplingBatch
from quire.v1 import generate_pb2

logger = logging.getLogger(__name__)


def report_sampled(
    result: executor_pb2.StepResult,
    slots: NDArray[np.int64],
    sampling: SamplingBatch,
    sampled: SampledTokens,
    masks: StepMasks | None,
) -> None:
    """Adds the tokens of the rows, whose slots are int64 [n], and what else is known of them."""
    result.slots = slots.astype("<u4").tobytes()
    result.token_ids = sampled.token_ids.tobytes()
    if masks is not None:
        result.failures.extend(_failures(slots, masks, sampled))
    if impossible := np.count_nonzero(sampled.impossible):
        logger.warning("step %d: no token of %d sequences has a logit that is a number", result.step, impossible)
    if sampled.logprobs is not None:
        result.logprobs.extend(_logprobs(sampling, sampled))


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
