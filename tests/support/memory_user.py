"""A process that writes device memory until it is killed: `… support.memory_user LIBRARY SOCKET EPOCH SIZE BYTE`.

It attaches the pool of the epoch, fills it, prints whether it had content, and waits.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from quire.cuda_driver import CudaDriver
from quire.device_pool.client import HolderClient


@contextlib.contextmanager
def memory_user(library: Path, holder: Path, epoch: int, size: int, byte: int) -> Iterator[subprocess.Popen[str]]:
    """The process, once it has written; it is killed at the end of the block."""
    arguments = [str(library), str(holder), str(epoch), str(size), str(byte)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "support.memory_user", *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "has_content=False\n"
            yield process
        finally:
            process.kill()


def _main() -> None:
    library, holder, epoch, size, byte = sys.argv[1:]
    memory, has_content = HolderClient(Path(holder), CudaDriver(library), 0).attach(int(epoch), int(size))
    ctypes.memset(memory.address, int(byte), memory.num_bytes)
    print(f"{has_content=}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    _main()
