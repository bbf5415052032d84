"""The executor as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkpoints import make_checkpoint

from quire import rpc
from quire.internal.v1 import executor_pb2, executor_pb2_grpc

PROGRAM = """
import json, sys
from quire.config import ExecutorSettings
from quire.executor.server import run
from quire.process import run_process
sys.exit(run_process("executor 0", ExecutorSettings.load(json.loads(sys.argv[1])), run))
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
    assert serving.status() == {"state": "ready", "port": 1}
    with rpc.open_sync_channel(f"unix:{tmp_path}/executor-0.sock") as channel:
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        assert stub.Describe(executor_pb2.DescribeExecutorRequest(), timeout=10).vocab_size == 320
    assert Path(f"/proc/{serving.popen.pid}/cmdline").read_text().startswith("quire: executor 0")
    loaded = Path(f"/proc/{serving.popen.pid}/maps").read_text()
    # A cold start must not wait for it.
    assert "transformers" not in loaded
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


def test_an_address_that_is_taken_fails_the_start(serving: Process, checkpoint: Path, tmp_path: Path) -> None:
    assert serving.status()["state"] == "ready"
    process = Process(model=str(checkpoint), listen="unix:/not/there/executor.sock")
    assert process.status()["error"] == "StartupError"
    process.end()


def test_it_never_imports_transformers() -> None:
    code = "import sys, quire.executor.server; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
