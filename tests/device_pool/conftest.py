from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support import fake_cuda

from quire.cuda_driver import CudaDriver
from quire.device_pool.client import HolderClient
from quire.device_pool.holder import PoolHolder, serve_at
from quire.packet_server import listen


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for libcuda.so.1."""
    return fake_cuda.build(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def driver(library: Path) -> CudaDriver:
    return CudaDriver(str(library))


@pytest.fixture
def address(driver: CudaDriver, tmp_path: Path) -> Iterator[Path]:
    """Of a holder in this process."""
    address = tmp_path / "device-pool.sock"
    with closing(PoolHolder(driver)) as holder, closing(serve_at(listen(address), holder)):
        yield address


@pytest.fixture
def client(address: Path, driver: CudaDriver) -> HolderClient:
    return HolderClient(address, driver, 0)
