"""What a GPU's process sets before it computes: how numbers are rounded, and where compiled kernels are kept."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Final

import torch

logger = logging.getLogger(__name__)

_TRITON_CACHE: Final = "TRITON_CACHE_DIR"
# cuBLAS sums in one order, on whatever stream, with workspaces of a fixed size (its documentation, "Results
# reproducibility"); it reads this when its first handle is made.
_CUBLAS_WORKSPACE: Final = "CUBLAS_WORKSPACE_CONFIG"


def set_up_cuda(scratch: Path | None = None) -> None:
    """Called once, before anything is computed. What the environment says already stays as it is.

    `scratch` is a folder that ends with the server, for compiled kernels where the home folder cannot hold them.

    torch's allocator keeps its defaults. Expandable segments would save it from fragments, but the buffers that are
    large and live long are made once at start-up, and when memory is short torch gives back what it keeps.
    """
    # float32 is float32: no TensorFloat-32 in torch's products.
    torch.set_float32_matmul_precision("highest")
    # Partial sums of products in 16 bits stay float32.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    os.environ.setdefault(_CUBLAS_WORKSPACE, ":4096:8")
    if _TRITON_CACHE not in os.environ and not _can_write(Path.home() / ".triton"):
        os.environ[_TRITON_CACHE] = tempfile.mkdtemp(prefix="quire-triton-", dir=scratch)
        logger.warning(
            "the home folder cannot be written to, so kernels are compiled at every start; set %s", _TRITON_CACHE
        )


def _can_write(folder: Path) -> bool:
    """Whether Triton can keep its cache in a folder, which need not be there yet."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
