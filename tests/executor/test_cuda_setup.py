"""What is set before a GPU computes; all of it can be set where there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from quire.executor.cuda_setup import set_up_cuda


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("TRITON_CACHE_DIR", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.setenv(name, "")  # so that what the test sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)


def test_float32_is_not_rounded_to_fewer_bits() -> None:
    torch.set_float32_matmul_precision("high")
    set_up_cuda()
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction


def test_what_the_environment_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    set_up_cuda()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert "TRITON_CACHE_DIR" not in os.environ, "the home folder will do"


def test_without_a_home_folder_kernels_are_kept_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", "/dev/null")
    set_up_cuda(tmp_path)
    assert Path(os.environ["TRITON_CACHE_DIR"]).parent == tmp_path
    assert "TRITON_CACHE_DIR" in caplog.text
