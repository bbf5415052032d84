"""What an asynchronous device does for one step."""

from __future__ import annotations

from torch import Tensor

from quire import kernels
from quire.executor.decoder import Decoder
from quire.executor.graphs import GraphLadder
from quire.executor.kv_cache import KvCache
from quire.executor.readouts import FinalStates
from quire.executor.step_buffers import StagedStep
from quire.kernels import DeviceSampledTokens, SampledTokens, SamplingBatch
from quire.step_counters import StepCounters


class StepWork:
    """What the device does for one step. Its methods are submitted, and may run later, on another thread."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KvCache,
        graphs: GraphLadder | None,
        staged: StagedStep,
        last_tokens: Tensor,
        states: FinalStates | None,
        counters: StepCounters | None,
    ) -> None:
        """`graphs`: has one for the size that the step was padded to; None: it was not padded.

        Of `staged.others`: copy_sources and copy_destinations, sampled_slots; each may be missing.
        """
        self._decoder = decoder
        self._cache = cache
        self._graphs = graphs
        self._staged = staged
        self._last_tokens = last_tokens
        self._states = states
        self._counters = counters
        self._logits: Tensor | None = None
        self._sampled: DeviceSampledTokens | None = None

    def compute(self) -> None:
        """From the columns to logits, which stay on the device."""
        staged, batch = self._staged, self._staged.batch
        staged.upload()
        if (sources := staged.others.get("copy_sources")) is not None:
            kernels.copy_blocks(self._cache.blocks, sources, staged.others["copy_destinations"])
        if staged.has_unknown_tokens:
            kernels.take_last_tokens(batch.token_ids, self._last_tokens)
        if self._graphs is not None:
            self._logits = self._graphs.replay(len(batch.arrays.token_ids))
        else:
            self._logits = self._decoder.forward(batch, self._cache, self._states, self._counters)

    def sample(self, sampling: SamplingBatch) -> None:
        """From logits to tokens: in the device's table, and on their way to the host."""
        assert self._logits is not None
        # Without the rows of padding.
        logits, self._logits = self._logits[: len(sampling.rows)], None
        self._sampled = sampled = kernels.sample_on_device(logits, sampling, self._staged.stage_words)
        self._last_tokens.index_copy_(0, self._staged.others["sampled_slots"], sampled.token_ids)
        sampled.fetch_into(self._staged.result_words(len(sampled.words)))

    def fetched(self) -> SampledTokens:
        """What came to the host; to be called once the device has done the step."""
        sampled = self._sampled
        assert sampled is not None
        return sampled.unpack(self._staged.result_words(len(sampled.words)).numpy())
