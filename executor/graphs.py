"""CUDA graphs of decode steps: which sizes there are, when one is captured, and when it is replayed.

A decode step launches some ten kernels for each layer, and at small batches the host needs longer to launch them than
the device to run them. A graph is launched as one. It has the shapes and addresses of its capture: a step is padded to
the next larger size of a ladder, and reads its columns where every step puts them (`step_buffers.py`).

The server is ready before anything is captured. A step whose size has no graph yet runs eagerly and asks for it; the
worker captures between steps, one size at a time, the one asked for most first. But the very first is the largest:
graphs share one pool of memory, and what the largest needs at most is what all others then fit into.
"""

from __future__ import annotations

import bisect
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Steps between two captures while the worker is busy, so that requests that run do not stand still for a whole ladder.
_STEPS_APART: Final = 16

# Of the sizes where none are given. Larger steps take the device longer than the host needs to launch them.
_LARGEST_SIZE: Final = 512


class DecodeStep(Protocol):
    """What a graph is made of: one new token for each row, from columns at fixed addresses to logits."""

    def stage_padding(self, size: int) -> None:
        """Fills the columns of `size` rows so that nothing is stored or attended to: a capture runs on them."""
        ...

    def forward(self, size: int, logits: Tensor) -> None:
        """Computes the first `size` rows of the columns; `logits` is float32 [size, vocab].

        After it ran once it must not wait for the device, nor read on the host what a step may change.
        """
        ...


class Graph(Protocol):
    """Work that was recorded."""

    def replay(self) -> None:
        """Launches it on the current stream."""
        ...


class Capture(Protocol):
    """Records work for a device."""

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        """float32 memory of the device."""
        ...

    def record(self, work: Callable[[], None]) -> Graph:
        """Runs `work` once, so that its kernels are compiled, and then records it."""
        ...

    def allocated_bytes(self) -> int:
        """Memory of the device that is in use, whatever for."""
        ...

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        ...


class GraphLadder:
    """The graphs of one attached KV pool. Of the thread that runs the model."""

    def __init__(self, step: DecodeStep, vocab_size: int, sizes: Sequence[int], capture: Capture) -> None:
        """`sizes` rise, as `ladder_sizes` gives them; without any, all steps are eager."""
        self._step = step
        self._vocab_size = vocab_size
        self._sizes = list(sizes)
        self._capture = capture
        self._graphs: dict[int, Graph] = {}
        # How often each size was missed; those that cannot be captured are not asked for again.
        self._missed: Counter[int] = Counter()
        self._failed: set[int] = set()
        self._steps_since_capture = 0
        # float32 [largest size, vocab]; the logits of a size are its first rows.
        self._logits: Tensor | None = None

    def padded_size(self, num_rows: int) -> int | None:
        """The rows that a decode step must have to be replayed. None: run it eagerly, its size is captured later."""
        self._steps_since_capture += 1
        index = bisect.bisect_left(self._sizes, num_rows)
        if index == len(self._sizes):
            return None
        size = self._sizes[index]
        if size in self._graphs:
            return size
        if size not in self._failed:
            self._missed[size] += 1
        return None

    def replay(self, size: int) -> Tensor:
        """Launches a size that `padded_size` gave, on the columns as they are: float32 [size, vocab].

        The logits are overwritten by the next replay, of whatever size.
        """
        assert self._logits is not None
        self._graphs[size].replay()
        return self._logits[:size]

    def capture_next(self, *, idle: bool) -> bool:
        """Captures one size if one was asked for: between two steps, all of them launched in this thread's stream.

        Args:
            idle: no plan waits and no step is under way. Otherwise only once some steps have passed.

        Returns:
            Whether time was spent on one.
        """
        if not self._missed or not (idle or self._steps_since_capture >= _STEPS_APART):
            return False
        size = self._next_size()
        self._missed.pop(size, None)
        try:
            self._record(size)
        except Exception as error:  # of the device, of torch or of Triton: the step itself goes on without a graph
            self._failed.add(size)
            # Ending a recording that broke off raises once more.
            reason = error.__context__ or error
            logger.warning("decode steps of %d sequences stay eager: no CUDA graph, %s", size, reason)
        self._steps_since_capture = 0
        return True

    def drop(self) -> None:
        """Forgets all graphs: addresses that they hold are about to be given back. Waits for the device."""
        if self._graphs:
            self._capture.wait()
        self._graphs.clear()
        self._failed.clear()
        self._missed.clear()
        self._logits = None

    def _next_size(self) -> int:
        largest = self._sizes[-1]
        if self._graphs or largest in self._failed:
            return self._missed.most_common(1)[0][0]
        return largest

    def _record(self, size: int) -> None:
        started, before = time.monotonic(), self._capture.allocated_bytes()
        if self._logits is None:
            self._logits = self._capture.empty((self._sizes[-1], self._vocab_size))
        logits = self._logits[:size]
        with torch.inference_mode():
            self._step.stage_padding(size)
            self._graphs[size] = self._capture.record(lambda: self._step.forward(size, logits))
        took, grown = time.monotonic() - started, self._capture.allocated_bytes() - before
        logger.info("captured decode steps of %d sequences in %.0f ms, %.1f MiB", size, took * 1e3, grown / 2**20)


class CudaCapture:
    """Records CUDA graphs, all in one pool of memory: they never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # A stream that captures cannot do anything else, and the default one cannot capture.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        """See Capture."""
        return torch.empty(shape, dtype=torch.float32, device=self._device)

    def record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """See Capture."""
        steps = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(steps)
        # Kernels are compiled and libraries make their handles and workspaces: none of that can be captured.
        with torch.cuda.stream(self._stream):
            work()
        steps.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may use the driver meanwhile ("thread_local"). Entering gives the warm-up's memory back.
            # The outer block restores the stream where the inner one fails to end, which forgets to.
            with (
                torch.cuda.stream(steps),
                torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"),
            ):
                work()
        except BaseException:
            # torch may still believe that this pool is being recorded into, and would refuse the next graph.
            self._pool = torch.cuda.graph_pool_handle()
            raise
        return graph

    def allocated_bytes(self) -> int:
        """See Capture."""
        free, total = torch.cuda.mem_get_info(self._device)
        return int(total - free)

    def wait(self) -> None:
        """See Capture."""
        torch.cuda.synchronize(self._device)


def ladder_sizes(max_num_seqs: int, sizes: Sequence[int] = (), largest: int | None = None) -> list[int]:
    """The sizes that are captured, rising, none of them larger than a step may be.

    Args:
        max_num_seqs: rows of the largest step.
        sizes: --cudagraph-capture-sizes. Without: 1, 2, 4, then every 8th up to 256, then every 16th.
        largest: --max-cudagraph-capture-size, beyond which none is captured.
    """
    if sizes:
        return sorted({min(size, max_num_seqs) for size in sizes if largest is None or size <= largest})
    end = min(max_num_seqs, largest or _LARGEST_SIZE)
    return sorted({size for size in (1, 2, 4, *range(8, 257, 8), *range(272, end, 16), end) if size <= end})
