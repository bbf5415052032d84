"""Quire: an LLM serving system. `LLM` generates offline; `quire serve` serves over gRPC and REST."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from quire.llm import LLM
    from quire.outputs import CompletionOutput, EmbeddingRequestOutput, RequestOutput
    from quire.pooling_params import PoolingParams
    from quire.sampling_params import SamplingParams

__all__ = [
    "LLM",
    "CompletionOutput",
    "EmbeddingRequestOutput",
    "PoolingParams",
    "RequestOutput",
    "SamplingParams",
    "__version__",
]

_HOMES = {
    "LLM": "quire.llm",
    "CompletionOutput": "quire.outputs",
    "EmbeddingRequestOutput": "quire.outputs",
    "PoolingParams": "quire.pooling_params",
    "RequestOutput": "quire.outputs",
    "SamplingParams": "quire.sampling_params",
}


def __getattr__(name: str) -> Any:
    """Imports the public names when they are first used: the processes of a server need few of them."""
    if name == "__version__":
        from importlib.metadata import version  # 0.1 s, which no process needs to start

        return version("quire")
    if name not in _HOMES:
        raise AttributeError(f"module 'quire' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
