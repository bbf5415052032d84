"""Servers under load: each started by its own command, loaded by `quire bench serve`, and ended."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from peers.cases import ServedCase
from peers.engines import ENGINES, THREADS, EngineError, EngineSpec, end_group

START_TIMEOUT_S = 900
RUN_TIMEOUT_S = 1200


@dataclass(frozen=True)
class ServerSpec:
    """A Python module and its flags, in which {model}, {port}, {grpc_port} and {max_len} are filled in."""

    name: str
    engine: str
    module: str
    flags: str

    def command(self, root: Path, model: Path, port: int, max_len: int) -> list[str]:
        """The words of the command."""
        python = ENGINES[self.engine].python(root)
        grpc_port = free_port()
        return [
            python,
            "-P",
            "-m",
            self.module,
            *self.flags.format(model=model, port=port, grpc_port=grpc_port, max_len=max_len).split(),
        ]


_QUIRE = (
    "serve {model} --port {port} --grpc-port {grpc_port} --dtype bfloat16 --max-model-len {max_len} --max-num-seqs 64"
    f" --threads {THREADS} --kv-cache-memory 2GiB --log-level warning"
)

SERVERS = {
    spec.name: spec
    for spec in (
        ServerSpec("quire", "quire", "quire", _QUIRE),
        ServerSpec("quire-no-cache", "quire", "quire", _QUIRE + " --no-enable-prefix-caching"),
        ServerSpec(
            "vllm",
            "vllm",
            # What `vllm serve` runs; the command itself fails in the CPU wheel, which it looks for as "vllm".
            "vllm.entrypoints.openai.api_server",
            "--model {model} --port {port} --host 127.0.0.1 --dtype bfloat16 --max-model-len {max_len}"
            " --max-num-seqs 64",
        ),
    )
}


class ServerProcess:
    """A running server; a context manager that ends its process group."""

    def __init__(self, spec: ServerSpec, root: Path, case: ServedCase, log: Path) -> None:
        engine: EngineSpec = ENGINES[spec.engine]
        self.model = engine.model(case.shape, "bf16", root)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._case = case
        self._log_path = log
        self._log = log.open("ab")
        max_len = case.prefix_len + case.input_len + case.output_len + 16
        self._process = subprocess.Popen(
            spec.command(root, self.model, port, max_len),
            stdout=self._log,
            stderr=self._log,
            env=engine.variables(),
            start_new_session=True,
        )

    def __enter__(self) -> "ServerProcess":
        try:
            self._wait_ready(time.monotonic() + START_TIMEOUT_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait_ready(self, deadline: float) -> None:
        """Until the server answers. Raises EngineError if it ends first, or does not in time."""
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise EngineError(f"the server did not start; see {self._log_path}")
            time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        end_group(self._process)
        self._log.close()

    def load(self, concurrency: int, num_prompts: int, seed: int) -> dict:
        """One run of load; its result. A new seed gives prompts that no earlier run has left in the cache.

        Raises EngineError.
        """
        case = self._case
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            options = {
                "base-url": self.url,
                "model": self.model,
                "max-concurrency": concurrency,
                "num-prompts": num_prompts,
                "num-warmups": min(concurrency, 4),
                "random-prefix-len": case.prefix_len,
                "random-input-len": case.input_len,
                "random-output-len": case.output_len,
                "result-filename": result,
                "seed": seed,
            }
            flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
            command = [sys.executable, "-P", "-m", "quire", "bench", "serve", *flags]
            command += ["--ignore-eos", "--save-result", "--disable-tqdm"]
            done = subprocess.run(
                command,
                stdout=self._log,
                stderr=self._log,
                env=dict(os.environ),
                timeout=RUN_TIMEOUT_S,
            )
            if done.returncode != 0:
                raise EngineError(f"the load on {self.model} failed; see {self._log_path}")
            figures: dict = json.loads(result.read_text())
        if figures["failed"]:
            raise EngineError(f"{figures['failed']} requests failed; see {self._log_path}")
        return figures


def free_port() -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
