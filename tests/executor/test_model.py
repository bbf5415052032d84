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


@pytest.mark.parametrize("name", ["float16", "fp8", "fp8_e4m3"])
def test_what_the_native_kernels_do_not_store(name: str) -> None:
    with pytest.raises(StartupError, match=f"--kv-cache-dtype {name} is supported on cuda only") as caught:
        choose_kv_cache_dtype(name, torch.bfloat16, torch.device("cpu"))
    assert caught.value.field == "kv_cache_dtype"


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("auto", torch.float16),
        ("float32", torch.float32),
        ("float16", torch.float16),
        ("bfloat16", torch.bfloat16),
        ("int8", torch.int8),
        ("fp8", torch.float8_e4m3fn),
        ("fp8_e4m3", torch.float8_e4m3fn),
    ],
)
def test_the_caches_type_on_a_gpu(name: str, chosen: torch.dtype) -> None:
    assert choose_kv_cache_dtype(name, torch.float16, torch.device("cuda"), (9, 0)) == chosen


def test_fp8_needs_a_gpu_that_converts_to_it() -> None:
    cuda = torch.device("cuda")
    assert choose_kv_cache_dtype("fp8", torch.float16, cuda, (8, 9)) == torch.float8_e4m3fn
    assert choose_kv_cache_dtype("int8", torch.float16, cuda, (8, 0)) == torch.int8
    with pytest.raises(StartupError, match=r"compute capability 8\.9 or more .*, not 8\.0") as caught:
        choose_kv_cache_dtype("fp8", torch.float16, cuda, (8, 0))
    assert caught.value.field == "kv_cache_dtype"
