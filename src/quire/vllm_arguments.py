"""Arguments of vLLM's `LLM` that scripts pass and that ask for nothing which Quire would do otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from quire.errors import StartupError

# By name: the values that change nothing here; None for any value.
_NEUTRAL: Final[Mapping[str, tuple[object, ...] | None]] = {
    # How vLLM runs, not what comes out.
    "disable_custom_all_reduce": None,
    "disable_log_stats": None,
    "enable_chunked_prefill": (True,),
    "enforce_eager": None,
    "gpu_memory_utilization": None,
    "max_seq_len_to_capture": None,
    "swap_space": None,
    # What Quire does in any case, or not at all.
    "data_parallel_size": (1,),
    "enable_lora": (False,),
    "pipeline_parallel_size": (1,),
    "seed": (None, 0),
    "skip_tokenizer_init": (False,),
    "tensor_parallel_size": (1,),
    "tokenizer_mode": ("auto",),
    "tokenizer_revision": (None,),
    "trust_remote_code": (False,),
}


def without_neutral(model: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are Quire's own. Raises StartupError for a value that Quire cannot serve."""
    own = dict(settings)
    for name, values in _NEUTRAL.items():
        value = own.pop(name, values[0] if values else None)
        if values is not None and value not in values:
            raise StartupError(f"{name}: Quire supports {values[-1]!r} only, not {value!r}", field=name)
    tokenizer = own.pop("tokenizer", None)
    if tokenizer is not None and tokenizer != model:
        raise StartupError(f"tokenizer: Quire uses the model's own, not {tokenizer!r}", field="tokenizer")
    return own
