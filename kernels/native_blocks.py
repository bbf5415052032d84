"""The native block copy."""

from torch import Tensor

from .native_library import library

__all__ = ["copy_blocks"]


def copy_blocks(pool: Tensor, sources: Tensor, destinations: Tensor) -> None:
    """As `blocks.copy_blocks`, for arguments that it has checked."""
    library().quire_copy_blocks(
        pool.data_ptr(),
        pool.stride(0) * pool.element_size(),
        pool[0].numel() * pool.element_size(),
        sources.data_ptr(),
        destinations.data_ptr(),
        sources.shape[0],
    )
