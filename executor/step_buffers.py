"""The columns of steps, on their way to an asynchronous device.

    arrays of a step ─pack─▶ a pinned buffer ─one asynchronous copy─▶ the device's buffer ─▶ views: InputBatch
                                                                           │
                                      of a decode step that was padded:    └─▶ fixed addresses, which CUDA graphs read

There are as many pinned buffers as steps may be in flight: the host packs the next step while the device may still be
reading the one before. On the device there is one, since the copy of a step is behind the step before it in the same
stream. It grows; what a graph reads does not move: columns that belong to a size of the ladder lie where that size
alone decides, and block tables are copied into the first columns of a table that has the widest rows there may be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire.executor.device import AsyncDevice
from quire.executor.input_batch import BatchArrays, BatchTensors, InputBatch

# Of the first byte of each column: kernels are compiled for aligned pointers, and once only.
_ALIGNMENT: Final = 16
# Of a buffer that grows, to start with.
_BYTES: Final = 1 << 20
_WORD_BYTES: Final = 1 << 14

# Of columns; others travel as bytes.
_TYPES: Final = {"int64": torch.int64, "int32": torch.int32, "float32": torch.float32, "uint8": torch.uint8}

_Columns: TypeAlias = Mapping[str, NDArray[Any]]


class StagedStep:
    """A step's columns in pinned memory, and where they will be on the device.

    Attributes:
        batch: the batch as views of the device's memory; of a padded step, with all its rows, at fixed addresses.
        others: views of the other columns, by name.
        has_unknown_tokens: some of the batch's token ids are negative (see `kernels.take_last_tokens`).
    """

    def __init__(
        self,
        batch: InputBatch,
        others: Mapping[str, Tensor],
        copies: Sequence[tuple[Tensor, Tensor]],
        pinned: _Pinned,
        free: deque[_Pinned],
    ) -> None:
        """`copies`: (to, from), in this order; the first is from the host. `free`: where `pinned` goes in the end."""
        self.batch = batch
        self.others = others
        token_ids = batch.arrays.token_ids
        self.has_unknown_tokens = bool(len(token_ids)) and int(np.minimum.reduce(token_ids)) < 0
        self._copies = copies
        self._pinned = pinned
        self._free = free

    def upload(self) -> None:
        """Copies the columns to the device; to be called in its stream (`AsyncDevice.submit`), as what follows."""
        for target, source in self._copies:
            target.copy_(source, non_blocking=True)

    def stage_words(self, words: NDArray[np.int32]) -> Tensor:
        """A second copy, for what was not known when the step was staged (`kernels.Stage`). Once."""
        source = self._pinned.words.reserve(words.nbytes).view(torch.int32)
        source.numpy()[...] = words
        return torch.empty(len(words), dtype=torch.int32, device=self.batch.device).copy_(source, non_blocking=True)

    def result_words(self, num_words: int) -> Tensor:
        """Pinned int32 [num_words], for what comes back; the same memory each time."""
        return self._pinned.results.reserve(4 * num_words).view(torch.int32)

    def release(self) -> None:
        """Gives the pinned memory back. To be called once, when the device has done the step."""
        self._free.append(self._pinned)


class StepBuffers:
    """Pinned memory for each step in flight, and memory of the device. Used by the thread that launches steps."""

    def __init__(
        self,
        device: AsyncDevice,
        num_steps: int,
        max_blocks: int,
        largest_size: int = 0,
        *,
        rotary_lengths: bool = False,
    ) -> None:
        """
        Args:
            device: that of the model.
            num_steps: how many may be in flight.
            max_blocks: of one sequence: columns of the widest block table.
            largest_size: rows of the largest padded decode step; 0: none is padded.
            rotary_lengths: whether batches have that column.
        """
        self._device = device
        self._free = deque(_Pinned(device) for _ in range(num_steps))
        self._memory = _DeviceMemory(device, _BYTES)
        self._empty = empty_arrays(rotary_lengths=rotary_lengths)
        fixed_bytes = _layout(_columns(pad_decode(self._empty, largest_size)))[1]
        self._fixed = _DeviceMemory(device, fixed_bytes)
        tables = device.device_memory(largest_size * max_blocks * 4)
        self._tables = tables.view(torch.int32).view(largest_size, max_blocks)
        self._decode_tensors: dict[int, BatchTensors] = {}

    def stage(
        self, arrays: BatchArrays, sampled: NDArray[np.int64], others: _Columns, size: int | None = None
    ) -> StagedStep:
        """Packs a step into a free pinned buffer. The device sees nothing of it before `StagedStep.upload`.

        Args:
            arrays: the batch.
            sampled: int64 [num_sampled], the slots of its logit rows (see InputBatch); padding adds none.
            others: further columns that are wanted on the device: int64, int32, float32 or uint8.
            size: pad a decode step, one token for each row and each sampled, to so many rows.
        """
        assert self._free, "more steps are in flight than there are buffers"
        if size is not None:
            arrays = pad_decode(arrays, size)
        columns = _columns(arrays)
        num_own = _layout(columns)[1]
        everything = {**columns, "block_tables": arrays.block_tables, **{f"+{name}": others[name] for name in others}}
        offsets, num_bytes = _layout(everything)
        pinned = self._free.popleft()
        source = pinned.columns.pack(everything, offsets, num_bytes)
        self._memory.reserve(num_bytes)
        copies = [(self._memory.bytes[:num_bytes], source)]
        tables = self._memory.view(offsets["block_tables"], arrays.block_tables)
        if size is None:
            views = {name: self._memory.view(offsets[name], column) for name, column in columns.items()}
            tensors = BatchTensors.of(views, tables)
        else:
            tensors = self.decode_tensors(size)
            copies.append((self._fixed.bytes[:num_own], self._memory.bytes[:num_own]))
            copies.append((self._tables[: len(tables), : tables.shape[1]], tables))
        batch = InputBatch(arrays, self._device.torch_device, sampled, tensors)
        views = {name: self._memory.view(offsets[f"+{name}"], column) for name, column in others.items()}
        return StagedStep(batch, views, copies, pinned, self._free)

    def stage_padding(self, size: int) -> StagedStep:
        """A decode step of padding alone, for whoever captures a graph: it stores nothing and attends to nothing."""
        return self.stage(self._empty, np.empty(0, np.int64), {}, size)

    def decode_batch(self, size: int) -> InputBatch:
        """What a graph of `size` rows computes; its arrays are those of padding alone."""
        arrays, tensors = pad_decode(self._empty, size), self.decode_tensors(size)
        # Metadata of its own, since it may remember lengths, and those change from step to step.
        tensors = replace(tensors, attention=replace(tensors.attention))
        return InputBatch(arrays, self._device.torch_device, np.empty(0, np.int64), tensors)

    def decode_tensors(self, size: int) -> BatchTensors:
        """Where every decode step that is padded to `size` rows finds its columns. They never move."""
        if (tensors := self._decode_tensors.get(size)) is None:
            arrays = pad_decode(self._empty, size)
            columns = _columns(arrays)
            offsets, _ = _layout(columns)
            views = {name: self._fixed.view(offsets[name], column) for name, column in columns.items()}
            tensors = self._decode_tensors[size] = BatchTensors.of(views, self._tables[:size])
        return tensors


def pad_decode(arrays: BatchArrays, size: int) -> BatchArrays:
    """A decode step with rows up to `size`: token 0 without a slot, of a sequence without context."""
    num_rows = len(arrays.token_ids)
    missing = size - num_rows

    def padded(column: NDArray[Any], value: int) -> NDArray[Any]:
        return np.concatenate([column, np.full(missing, value, column.dtype)])

    return BatchArrays(
        token_ids=padded(arrays.token_ids, 0),
        positions=padded(arrays.positions, 0),
        rotary_lengths=None if arrays.rotary_lengths is None else padded(arrays.rotary_lengths, 0),
        query_start=np.arange(size + 1, dtype=np.int32),
        context_lens=padded(arrays.context_lens, 0),
        # Rows without a context have no need of blocks: what is left of an earlier step stays there.
        block_tables=arrays.block_tables,
        slot_mapping=padded(arrays.slot_mapping, -1),
        logit_rows=np.arange(size, dtype=np.int32),
    )


def empty_arrays(*, rotary_lengths: bool) -> BatchArrays:
    """A step of no tokens."""
    none = np.empty(0, np.int32)
    return BatchArrays(
        token_ids=none,
        positions=none,
        rotary_lengths=none if rotary_lengths else None,
        query_start=np.zeros(1, np.int32),
        context_lens=none,
        block_tables=np.empty((0, 0), np.int32),
        slot_mapping=np.empty(0, np.int64),
        logit_rows=none,
    )


class _Pinned:
    """Pinned memory of one step: its columns, what is sent after them, and what comes back."""

    def __init__(self, device: AsyncDevice) -> None:
        self.columns = _HostMemory(device, _BYTES)
        self.words = _HostMemory(device, _WORD_BYTES)
        self.results = _HostMemory(device, _WORD_BYTES)


class _HostMemory:
    """Memory that the device copies from or to. It grows when nothing in it is in use."""

    def __init__(self, device: AsyncDevice, num_bytes: int) -> None:
        self._device = device
        self._bytes = device.host_memory(num_bytes)

    def reserve(self, num_bytes: int) -> Tensor:
        """uint8 [num_bytes]."""
        if num_bytes > len(self._bytes):
            self._bytes = self._device.host_memory(2 * num_bytes)
        return self._bytes[:num_bytes]

    def pack(self, columns: _Columns, offsets: Mapping[str, int], num_bytes: int) -> Tensor:
        """uint8 [num_bytes]: the columns at their offsets."""
        packed = self.reserve(num_bytes)
        array = packed.numpy()
        for name, column in columns.items():
            space = array[offsets[name] :][: column.nbytes].view(column.dtype)
            space.reshape(column.shape)[...] = column
        return packed


class _DeviceMemory:
    """Bytes of the device, with views of other types.

    Growing gives the old bytes back while the device may yet read them: torch hands them out again in the order of the
    stream alone, in which everything here is used.
    """

    def __init__(self, device: AsyncDevice, num_bytes: int) -> None:
        self._device = device
        self._allocate(num_bytes)

    def reserve(self, num_bytes: int) -> None:
        """Makes room for as many bytes."""
        if num_bytes > len(self.bytes):
            self._allocate(2 * num_bytes)

    def view(self, offset: int, like: NDArray[Any]) -> Tensor:
        """Memory of the type and shape of an array of one dimension or two."""
        strides = (like.shape[1], 1) if like.ndim == 2 else (1,)
        return self._typed[like.dtype].as_strided(like.shape, strides, offset // like.itemsize)

    def _allocate(self, num_bytes: int) -> None:
        self.bytes = self._device.device_memory(_aligned(num_bytes))
        self._typed = {np.dtype(name): self.bytes.view(dtype) for name, dtype in _TYPES.items()}


def _columns(arrays: BatchArrays) -> dict[str, NDArray[Any]]:
    """All but the block tables, whose size no ladder decides."""
    columns: dict[str, NDArray[Any]] = {
        "slot_mapping": arrays.slot_mapping,
        "token_ids": arrays.token_ids,
        "positions": arrays.positions,
        "query_start": arrays.query_start,
        "context_lens": arrays.context_lens,
        "logit_rows": arrays.logit_rows,
    }
    return columns if arrays.rotary_lengths is None else {**columns, "rotary_lengths": arrays.rotary_lengths}


def _layout(columns: _Columns) -> tuple[dict[str, int], int]:
    """Where each column begins, and the bytes of all."""
    offsets, end = {}, 0
    for name, column in columns.items():
        offsets[name] = end
        end += _aligned(column.nbytes)
    return offsets, end


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
