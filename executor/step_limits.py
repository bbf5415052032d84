"""What a step may hold, for which an executor has memory: the scheduler keeps to the same settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from quire.config import ExecutorSettings
from quire.executor.graphs import ladder_sizes


@dataclass(frozen=True, slots=True)
class StepLimits:
    """Of all steps.

    Attributes:
        max_num_seqs: rows.
        max_num_batched_tokens: tokens of all rows together.
        block_size: tokens in a KV block.
        graph_sizes: rows of the decode steps that are captured as CUDA graphs, rising; none with --enforce-eager.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    graph_sizes: tuple[int, ...]

    @classmethod
    def of(cls, settings: ExecutorSettings) -> Self:
        """As the settings say."""
        sizes: list[int] = []
        if not settings.enforce_eager:
            sizes = ladder_sizes(
                settings.max_num_seqs, settings.cudagraph_capture_sizes, settings.max_cudagraph_capture_size
            )
        return cls(settings.max_num_seqs, settings.max_num_batched_tokens, settings.block_size, tuple(sizes))
