"""The executor as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkpoints import make_checkpoint
from support.processes import open_descriptors, shared_memory
from support.servers import wait_for

from quire import kernels, rpc
from quire.config import ExecutorSettings
from quire.errors import ServiceUnavailableError, StartupError
from quire.executor.server import run
from quire.internal.v1 import executor_pb2, executor_pb2_grpc
from quire.process import StatusReporter, StopSignal
from quire.scheduler.executor_client import ExecutorClient


def settings(checkpoint: Path, **values: object) -> ExecutorSettings:
    given = {
        "model": str(checkpoint),
        "device": "cpu",
        "threads": 1,
        "listen": "127.0.0.1:0",
        "sandbox": "off",
        **values,
    }
    return ExecutorSettings.load(given)


PROGRAM = """
import json, sys
from quire.config import ExecutorSettings
from quire.executor.server import run
from quire.process import run_process
sys.exit(run_process("executor 0", ExecutorSettings.load(json.loads(sys.argv[1])), run, use_uvloop=False))
"""


class Process:
    """An executor and the pipe on which it reports."""

    def __init__(self, **settings: object) -> None:
        reading, writing = os.pipe()
        values = {**settings, "device": "cpu", "threads": 1, "status_fd": writing, "parent_pid": os.getpid()}
        self.popen = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, json.dumps(values)],
            pass_fds=[writing],
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(writing)
        self._status = os.fdopen(reading)

    def status(self) -> dict[str, object]:
        message: dict[str, object] = json.loads(self._status.readline())
        return message

    def end(self) -> str:
        """Waits for the process; returns what it wrote to stderr."""
        self._status.close()
        _, stderr = self.popen.communicate(timeout=30)
        return stderr


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model", "llama", num_hidden_layers=1)


@pytest.fixture
def serving(checkpoint: Path, tmp_path: Path) -> Iterator[Process]:
    process = Process(model=str(checkpoint), listen=f"unix:{tmp_path}/executor-0.sock")
    yield process
    process.popen.kill()
    process.end()


def test_it_reports_ready_serves_and_ends_cleanly(serving: Process, tmp_path: Path) -> None:
    assert serving.status() == {"state": "ready"}
    with rpc.open_sync_channel(f"unix:{tmp_path}/executor-0.sock") as channel:
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        assert stub.Describe(executor_pb2.DescribeExecutorRequest(), timeout=10).vocab_size == 320
    assert Path(f"/proc/{serving.popen.pid}/cmdline").read_text().startswith("quire: executor 0")
    serving.popen.send_signal(signal.SIGTERM)
    assert serving.popen.wait(timeout=15) == 0


def test_a_damaged_checkpoint_fails_the_start_and_names_the_file(checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    process = Process(model=str(checkpoint), listen=f"unix:{tmp_path}/executor-0.sock")
    status = process.status()
    assert (status["state"], status["error"], status["field"]) == ("failed", "CheckpointError", "model")
    assert str(path) in str(status["message"])
    stderr = process.end()
    assert process.popen.returncode == 1
    assert "Traceback" not in stderr


async def test_an_address_that_cannot_be_bound_fails_the_start(checkpoint: Path) -> None:
    with pytest.raises(StartupError, match="cannot listen on"):
        await run(settings(checkpoint, listen="unix:/not/there/executor.sock"), StatusReporter(None), StopSignal())


async def test_the_instruction_set_can_be_forced(checkpoint: Path) -> None:
    before = kernels.current_isa()
    stop = StopSignal()
    stop.set()
    try:
        await run(settings(checkpoint, isa="portable"), StatusReporter(None), stop)
        assert kernels.current_isa() == "portable"
        kernels.set_isa(before)
        missing = next((isa for isa in kernels.ISAS if isa not in kernels.available_isas()), None)
        if missing is not None:
            with pytest.raises(StartupError, match=f"--isa {missing}: isa must be one of") as caught:
                await run(settings(checkpoint, isa=missing), StatusReporter(None), stop)
            assert caught.value.field == "isa"
    finally:
        kernels.set_isa(before)


async def test_a_stop_while_the_model_loads_ends_it(checkpoint: Path) -> None:
    stop = StopSignal()
    stop.set()
    await asyncio.wait_for(run(settings(checkpoint), StatusReporter(None), stop), 5)


async def test_a_model_that_takes_too_long_fails_the_start(checkpoint: Path) -> None:
    with pytest.raises(StartupError, match="--startup-timeout 1e-06") as caught:
        await run(settings(checkpoint, startup_timeout=1e-6), StatusReporter(None), StopSignal())
    assert caught.value.field == "startup_timeout"


@pytest.mark.slow
def test_a_terminal_sees_a_progress_bar(checkpoint: Path) -> None:
    """Other programs see none."""
    code = f"""
from quire.config import ExecutorSettings
from quire.executor.model import load_model
load_model(ExecutorSettings.load({{"model": {str(checkpoint)!r}, "device": "cpu", "listen": "127.0.0.1:0"}}))
"""
    own, terminal = pty.openpty()
    subprocess.run([sys.executable, "-P", "-c", code], check=True, stderr=terminal)
    assert b"Loading weights" in os.read(own, 10_000)
    os.close(own)
    os.close(terminal)
    silent = subprocess.run([sys.executable, "-P", "-c", code], check=True, stderr=subprocess.PIPE)
    assert silent.stderr == b""


def test_it_never_imports_transformers() -> None:
    """A cold start must not wait for it."""
    code = "import sys, quire.executor.server; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


SCHEDULER = """
import asyncio, sys
from quire.internal.v1 import executor_pb2
from quire.scheduler.executor_client import ExecutorClient

async def main():
    channel = await ExecutorClient(0, sys.argv[1]).open_steps("ring", 10)
    print("open", flush=True)
    await channel.receive()

asyncio.run(main())
"""


def test_a_killed_scheduler_leaves_nothing_in_the_executor(serving: Process, tmp_path: Path) -> None:
    serving.status()
    address = f"unix:{tmp_path}/executor-0.sock"
    with rpc.open_sync_channel(address) as channel:
        # The first call makes gRPC open what it keeps.
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        stub.Describe(executor_pb2.DescribeExecutorRequest(), timeout=10)
        before = open_descriptors(serving.popen.pid)
        for _ in range(2):
            scheduler = subprocess.Popen(
                [sys.executable, "-P", "-c", SCHEDULER, address], stdout=subprocess.PIPE, text=True
            )
            assert scheduler.stdout is not None
            assert scheduler.stdout.readline() == "open\n"
            assert shared_memory(serving.popen.pid) == {"quire-step-rings"}
            scheduler.kill()
            scheduler.communicate()
            wait_for(lambda: open_descriptors(serving.popen.pid) == before)
            assert not shared_memory(serving.popen.pid)


async def test_a_killed_executor_is_noticed_at_once_and_leaves_nothing(serving: Process, tmp_path: Path) -> None:
    serving.status()
    client = ExecutorClient(0, f"unix:{tmp_path}/executor-0.sock")
    await client.describe(10)
    before, mapped_before = open_descriptors(), shared_memory()
    channel = await client.open_steps("ring", 10)
    assert shared_memory() - mapped_before == {"quire-step-rings"}
    serving.popen.kill()
    with pytest.raises(ServiceUnavailableError, match="executor 0"):
        await asyncio.wait_for(channel.receive(), 10)
    await channel.close()
    # The connection may be gone too.
    assert open_descriptors() <= before
    assert shared_memory() == mapped_before
    await client.close()
