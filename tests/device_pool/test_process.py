"""`quire device-pool` as a real process that a supervisor's keeper starts, with a stand-in for the driver."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.fake_cuda import GRANULARITY

from quire.config import DevicePoolSettings, LocalSettings
from quire.cuda_driver import CudaDriver
from quire.device_pool.client import HolderClient, NoHolderError, wake
from quire.errors import StartupError
from quire.supervision.child import ChildSpec
from quire.supervision.on_demand import OnDemandKeeper

SIZE = GRANULARITY


@contextlib.asynccontextmanager
async def _keeper(folder: Path) -> AsyncIterator[OnDemandKeeper]:
    address = folder / "device-pool.sock"
    settings = LocalSettings.load({"log_level": "warning"})
    spec = ChildSpec("device pool", "device-pool", DevicePoolSettings, settings, {"address": address})
    failures: list[StartupError] = []
    keeper = OnDemandKeeper(spec, folder, address, failures.append)
    await keeper.start()
    try:
        yield keeper
    finally:
        await keeper.stop()
        assert not failures
        assert not address.exists()


def _build_nothing(folder: Path) -> None:
    """A library without functions under the driver's name, before the machine's own if it has one."""
    command = ["g++", "-shared", "-x", "c++", os.devnull, "-o", str(folder / "libcuda.so.1")]
    subprocess.run(command, check=True)


def _maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


async def _attach(client: HolderClient, epoch: int) -> tuple[Any, bool]:
    return await asyncio.to_thread(client.attach, epoch, SIZE)


async def test_it_is_started_when_it_is_asked_and_again_after_its_death(
    library: Path, driver: CudaDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
    async with _keeper(tmp_path) as keeper:
        assert keeper.children == []
        client = HolderClient(tmp_path / "device-pool.sock", driver, 0)
        memory, has_content = await _attach(client, 7)
        assert not has_content and keeper.child is not None
        assert (await _attach(client, 7))[1]
        first = keeper.child.process.pid
        assert str(library) in _maps(first) and "torch" not in _maps(first)

        os.kill(first, signal.SIGKILL)
        await keeper.child.until_ended()
        # Nobody holds the pool, but who had it mapped still has it.
        driver.fill(memory.address, 1, SIZE)
        _, has_content = await _attach(client, 7)
        assert not has_content
        assert keeper.child.process.pid != first and keeper.restarts == 1
        last = keeper.child.process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


async def test_where_there_is_no_driver_executors_are_told_at_once(
    driver: CudaDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _build_nothing(tmp_path)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    async with _keeper(tmp_path) as keeper:
        wake(tmp_path / "device-pool.sock")
        with pytest.raises(NoHolderError, match="cannot be reached"):
            await _attach(HolderClient(tmp_path / "device-pool.sock", driver, 0), 7)
        assert keeper.last_end is not None and "the NVIDIA driver is too old" in keeper.last_end


def test_it_follows_its_parent_into_death(
    library: Path, driver: CudaDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parent that is killed leaves no process and no socket."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
    address = tmp_path / "device-pool.sock"
    command = f"""
import os, subprocess, sys
flags = ["--address", {str(address)!r}, "--parent-pid", str(os.getpid()), "--status-fd", str(sys.stdout.fileno())]
child = [sys.executable, "-P", "-m", "quire", "device-pool", *flags]
subprocess.Popen(child, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=[sys.stdout.fileno()]).wait()
"""
    with subprocess.Popen([sys.executable, "-P", "-c", command], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b'{"state": "ready"}\n'
        assert not HolderClient(address, driver, 0).attach(7, SIZE)[1]
        parent.kill()
        parent.wait()
        # Its end is the end of the pipe that it, too, can write.
        assert parent.stdout.read() == b""
    assert not address.exists()
