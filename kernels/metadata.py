"""Where the tokens of one step belong, and where their keys and values lie."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .attention_work import AttentionWork

__all__ = ["AttentionMetadata"]


# eq=False: comparing tensors element by element is never what a caller of == wants.
@dataclass(frozen=True, slots=True, eq=False)
class AttentionMetadata:
    """The sequences of one step, shared by all its layers.

    Decode (one new token) and chunked prefill (many) stand side by side: query i of a sequence with
    q_len new tokens is at position context_len - q_len + i and attends causally.

    Attributes:
        query_start: int32 [num_seqs + 1]; the tokens of sequence s are rows query_start[s] up to
            query_start[s + 1] of the step's tensors. Starts at 0 and never falls.
        context_lens: int32 [num_seqs]; the KV tokens of each sequence in all, including this step's.
        block_tables: int32 [num_seqs, max_blocks]; the blocks of each sequence in order of position. Entries
            beyond the context, or wholly before a sliding window, are never read (pad with 0).
        slot_mapping: int64 [num_tokens]; block_id * block_size + offset of each new token.
        work: on GPUs, the list of what programs do. None: made from the lengths, which waits for the device.

    Raises:
        ValueError: a tensor has another dtype or shape, or they lie on different devices.
    """

    query_start: Tensor
    context_lens: Tensor
    block_tables: Tensor
    slot_mapping: Tensor
    work: AttentionWork | None = None
    _lengths: tuple[list[int], list[int]] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, dtype, dims in (
            ("query_start", torch.int32, 1),
            ("context_lens", torch.int32, 1),
            ("block_tables", torch.int32, 2),
            ("slot_mapping", torch.int64, 1),
        ):
            tensor: Tensor = getattr(self, name)
            if tensor.dtype != dtype or tensor.dim() != dims:
                raise ValueError(f"{name} must be {dims}-dimensional {dtype}, not {tensor.dtype} {list(tensor.shape)}")
            if tensor.device != self.query_start.device:
                raise ValueError(f"{name} is on {tensor.device}, query_start on {self.query_start.device}")
            # The last dimension only: rows of a larger table may be passed as they lie.
            if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
                raise ValueError(f"{name} must be contiguous in its last dimension")
        if self.query_start.shape[0] != self.num_seqs + 1:
            raise ValueError(f"query_start must have {self.num_seqs + 1} entries, not {self.query_start.shape[0]}")
        if self.block_tables.shape[0] != self.num_seqs:
            raise ValueError(f"block_tables must have {self.num_seqs} rows, not {self.block_tables.shape[0]}")

    @property
    def num_seqs(self) -> int:
        """Sequences in the step."""
        return self.context_lens.shape[0]

    @property
    def num_tokens(self) -> int:
        """New tokens in the step, over all sequences."""
        return self.slot_mapping.shape[0]

    def lengths(self) -> tuple[list[int], list[int]]:
        """(query_start, context_lens) as Python lists, fetched once.

        On a GPU the first call waits for the device; the layers after the first find the lists here.
        """
        if self._lengths is None:
            object.__setattr__(self, "_lengths", (self.query_start.tolist(), self.context_lens.tolist()))
        assert self._lengths is not None
        return self._lengths
