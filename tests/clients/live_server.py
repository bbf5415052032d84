"""One Quire server with the bundled model, started from the project's own environment as a user starts it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
# Where quire is installed; the clients' environments do not have it.
QUIRE_PYTHON = os.environ.get("QUIRE_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
MODEL = "quire-tiny"

_START_TIMEOUT_S = 180
_STOP_TIMEOUT_S = 60
_READY = re.compile(r"REST on (http://\S+) .*gRPC on (\S+)\. ")


@dataclass(frozen=True)
class LiveServer:
    """Where a running server listens."""

    url: str
    grpc_address: str

    @property
    def base_url(self) -> str:
        """What OpenAI's clients call the base URL."""
        return f"{self.url}/v1"


@contextlib.contextmanager
def live_server(*flags: str) -> Iterator[LiveServer]:
    """`quire serve` on free ports, ended at the end of the block; fails if it does not end cleanly."""
    line = [QUIRE_PYTHON, "-P", "-m", "quire", "serve", "--port", "0", "--grpc-port", "0", *flags]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield _wait_until_ready(process, log.fileno())
            process.terminate()
            assert process.wait(_STOP_TIMEOUT_S) == 0, f"the server did not end cleanly:\n{_read(log.fileno())}"
        finally:
            process.kill()  # its children end with it
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], log: int) -> LiveServer:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not (found := _READY.search(_read(log))):
        assert process.poll() is None, f"the server ended at once:\n{_read(log)}"
        assert time.monotonic() < deadline, f"the server is not ready after {_START_TIMEOUT_S} s:\n{_read(log)}"
        time.sleep(0.1)
    return LiveServer(url=found[1], grpc_address=found[2])


def _read(log: int) -> str:
    return os.pread(log, 1 << 20, 0).decode(errors="replace")
