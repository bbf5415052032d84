"""Cold start, memory and idle CPU of a whole server: `python -P benchmarks/start_up.py`.

The physics. Before the first token a server must read the weights (269 MB from the page cache: a tenth of a second),
pack them (0.5 s on two cores), make the KV pool (the kernel clears some GB a second) and import its libraries; torch
alone takes seconds, of one core. So the start is as long as the executor's imports, and whatever is not hidden behind
them.

What is measured. From the command `quire serve` to the first streamed token, on random weights of SmolLM-135M's shape
(or --model), which an unmeasured start brings into the page cache. `import torch` alone, in turn with the starts, says
what the machine's hour is like. Then the proportional set size of each process (shared pages count once over all), and
the CPU time of all of them over some seconds in which nobody asks for anything.

The last line is JSON: medians.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

# The folder of this file is on the path: it is the first entry for `python file`, and -P is given to children only.
sys.path.insert(0, str(Path(__file__).parent))
from peers.checkpoints import make_checkpoint
from peers.servers import free_port

SHAPE = "smollm-135m"
START_TIMEOUT_S = 120
MB = 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Cold start, memory and idle CPU of a server.")
    parser.add_argument("--model", help="a checkpoint's folder; default: random weights of SmolLM-135M's shape")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--idle-s", type=float, default=10.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        peers = Path(os.environ.get("QUIRE_PEERS_DIR", folder))
        model = options.model or str(make_checkpoint(SHAPE, peers / "checkpoints"))
        with started(model):
            pass  # brings files into the page cache
        starts, imports = [], []
        for _ in range(options.starts):
            imports.append(import_seconds())
            with started(model) as (server, seconds):
                starts.append(seconds)
                memory, idle = resident(server), idle_share(server, options.idle_s)
            print(f"first token after {seconds:.2f} s; `import torch` alone {imports[-1]:.2f} s", flush=True)
    for name, size in memory.items():
        print(f"{name}: {size / MB:.0f} MB")
    print(f"all: {sum(memory.values()) / MB:.0f} MB; idle: {idle:.2%} of a core")
    result = {
        "first_token_s": statistics.median(starts),
        "import_torch_s": statistics.median(imports),
        "pss_mb": {name: round(size / MB) for name, size in memory.items()},
        "idle_cores": idle,
    }
    print(json.dumps(result))


@contextlib.contextmanager
def started(model: str) -> Iterator[tuple[psutil.Process, float]]:
    """A server that has streamed its first token, and the seconds from its command to that token."""
    port = free_port()
    command = [
        sys.executable,
        "-P",
        "-m",
        "quire",
        "serve",
        model,
        "--port",
        str(port),
        "--grpc-port",
        str(free_port()),
    ]
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        first_token(f"http://127.0.0.1:{port}/v1/completions", model, process, begun + START_TIMEOUT_S)
        yield psutil.Process(process.pid), time.monotonic() - begun
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def first_token(url: str, model: str, process: subprocess.Popen[bytes], deadline: float) -> None:
    """Asks until it is answered, and waits for the answer's first event."""
    body = {"model": model, "prompt": list(range(8)), "max_tokens": 4, "ignore_eos": True, "stream": True}
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    while True:
        try:
            with urllib.request.urlopen(request, timeout=START_TIMEOUT_S) as answer:
                answer.readline()
                return
        except urllib.error.HTTPError:
            raise
        except OSError:  # nobody listens yet
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start: try `quire serve {model}`") from None
            time.sleep(0.02)


def import_seconds() -> float:
    """Of `import torch` in a process of its own."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-P", "-c", "import torch"], check=True, timeout=START_TIMEOUT_S)
    return time.monotonic() - begun


def resident(server: psutil.Process) -> dict[str, int]:
    """Proportional set sizes in bytes. What the KV pool has in use is not in any of them: nobody has touched it."""
    processes = [server, *server.children(recursive=True)]
    return {" ".join(process.cmdline()).strip(): process.memory_full_info().pss for process in processes}


def idle_share(server: psutil.Process, seconds: float) -> float:
    """Cores that all processes together use while nothing is asked of them."""
    processes = [server, *server.children(recursive=True)]
    time.sleep(3)  # until the pool has all of its memory
    before = cpu_seconds(processes)
    time.sleep(seconds)
    return (cpu_seconds(processes) - before) / seconds


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """Over all of them."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


if __name__ == "__main__":
    main()
