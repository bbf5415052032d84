"""What a model is loaded as."""

from __future__ import annotations

import pytest
import torch

from quire.errors import StartupError
from quire.executor.model import choose_kv_cache_dtype


@pytest.mark.parametrize(
    ("name", "chosen"),
    [("auto", torch.bfloat16), ("float32", torch.float32), ("bfloat16", torch.bfloat16), ("int8", torch.int8)],
)
def test_the_caches_type_on_a_cpu(name: str, chosen: torch.dtype) -> None:
    assert choose_kv_cache_dtype(name, torch.bfloat16, torch.device("cpu")) == chosen


def test_on_a_gpu_the_cache_has_the_models_type() -> None:
    cuda = torch.device("cuda")
    assert choose_kv_cache_dtype("auto", torch.float16, cuda) == torch.float16
    assert choose_kv_cache_dtype("bfloat16", torch.bfloat16, cuda) == torch.bfloat16
    for name in ("int8", "float32"):
        with pytest.raises(StartupError, match="--kv-cache-dtype") as caught:
            choose_kv_cache_dtype(name, torch.bfloat16, cuda)
        assert caught.value.field == "kv_cache_dtype"
