"""Where an executor on a GPU gets its pool's memory, as far as that can be seen without one."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from support import fake_cuda

from quire.cuda_driver import CudaDriver, CudaError
from quire.executor.device_memory import DeviceMemory

DEVICE = torch.device("cuda:0")


def _attach(memory: DeviceMemory, caplog: pytest.LogCaptureFixture) -> str:
    """The one line that says why the executor has to allocate for itself."""
    with caplog.at_level(logging.INFO):
        assert memory.attach(7, 100, is_new=False) is None
    (line,) = [record.getMessage() for record in caplog.records]
    return line


def test_without_a_holder(caplog: pytest.LogCaptureFixture) -> None:
    memory = DeviceMemory(DEVICE, None)
    assert memory.held_bytes() == 0
    line = _attach(memory, caplog)
    assert line == "the KV pool will not outlive this executor: nobody holds its memory (--device-pool)"


def test_without_a_driver(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_none() -> CudaDriver:
        raise CudaError("there is no NVIDIA driver")

    monkeypatch.setattr("quire.executor.device_memory.load_driver", load_none)
    memory = DeviceMemory(DEVICE, tmp_path / "device-pool.sock")
    assert _attach(memory, caplog) == "the KV pool will not outlive this executor: there is no NVIDIA driver"


def test_where_memory_cannot_be_exported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = CudaDriver(str(fake_cuda.build(tmp_path)))
    monkeypatch.setattr("quire.executor.device_memory.load_driver", lambda: driver)
    monkeypatch.setenv("FAKE_CUDA_EXPORT", "0")
    memory = DeviceMemory(DEVICE, tmp_path / "device-pool.sock")
    assert memory.held_bytes() == 0
    line = _attach(memory, caplog)
    assert line == "the KV pool will not outlive this executor: this platform cannot export device memory"
