"""The engines: in which environment each runs, with which variables, and the process that speaks its protocol."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from peers.checkpoints import make_checkpoint, make_gguf, make_openvino
from peers.install import PEERS, venv_python

BENCHMARKS = Path(__file__).parent.parent
THREADS = 2


@dataclass(frozen=True)
class EngineSpec:
    """One engine. `venv` is a key of PEERS, or None for our own environment; `formats` are what it is compared in."""

    name: str
    venv: str | None
    formats: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    def python(self, root: Path) -> str:
        """Its interpreter."""
        return sys.executable if self.venv is None else venv_python(PEERS[self.venv], root)

    def model(self, shape: str, number_format: str, root: Path) -> Path:
        """The checkpoint in its own format, made if it is not there."""
        folder = root / "checkpoints"
        if self.name == "llama_cpp":
            return make_gguf(shape, {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}[number_format], folder, root)
        if self.name == "openvino":
            return make_openvino(shape, {"bf16": "fp16"}.get(number_format, number_format), folder, root)
        return make_checkpoint(shape, folder)

    def variables(self) -> dict[str, str]:
        """The environment of its processes. Ours sees no pip constraints, and the peers not our sources."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PIP_CONSTRAINT", "PYTHONPATH")}
        paths = [str(BENCHMARKS)]
        if self.venv is None and "PYTHONPATH" in os.environ:
            paths.append(os.environ["PYTHONPATH"])
        return {**kept, **self.environment, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


ENGINES = {
    spec.name: spec
    for spec in (
        EngineSpec("quire", None, ("bf16", "int8", "int4")),
        EngineSpec(
            "vllm",
            "vllm",
            ("bf16",),
            {
                # Without these it leaves a core idle; the third is its KV cache in GiB.
                "VLLM_CPU_OMP_THREADS_BIND": f"0-{THREADS - 1}",
                "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
                "VLLM_CPU_KVCACHE_SPACE": "2",
                "VLLM_NO_USAGE_STATS": "1",
                "HF_HUB_OFFLINE": "1",
            },
        ),
        EngineSpec("llama_cpp", "llama_cpp", ("bf16", "int8", "int4")),
        EngineSpec("openvino", "openvino", ("bf16", "int8", "int4")),
        EngineSpec("transformers", None, ("bf16",)),
    )
}


class EngineError(Exception):
    """An engine failed, or did not answer in time."""


class EngineProcess:
    """An adapter's process, in a process group of its own; a context manager that ends all of it."""

    def __init__(self, spec: EngineSpec, root: Path, log: Path) -> None:
        self._spec = spec
        self._log = log.open("ab")
        self._log_path = log
        self._process = subprocess.Popen(
            [spec.python(root), "-P", "-m", f"peers.adapters.{spec.name}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=spec.variables(),
            start_new_session=True,
        )
        self._buffer = b""

    def __enter__(self) -> "EngineProcess":
        return self

    def __exit__(self, *_: object) -> None:
        end_group(self._process)
        self._log.close()

    def ask(self, timeout_s: float, **request: object) -> dict:
        """One request and its reply. Raises EngineError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise EngineError(f"{self._spec.name} has ended; see {self._log_path}") from error
        reply = json.loads(self._read_line(time.monotonic() + timeout_s))
        if "error" in reply:
            raise EngineError(f"{self._spec.name}: {reply['error']}; see {self._log_path}")
        return reply

    def _read_line(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        output = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([output], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(output, 1 << 20) if ready else b""
            if not piece:
                what = "has ended" if ready else "did not answer in time"
                raise EngineError(f"{self._spec.name} {what}; see {self._log_path}")
            self._buffer += piece
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line


def end_group(process: subprocess.Popen) -> None:
    """Ends a process that leads its group, and everything in the group, and waits for it."""
    if process.stdin is not None:
        process.stdin.close()
    else:
        process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        print(f"process {process.pid} did not end by itself", file=sys.stderr)
    with contextlib.suppress(ProcessLookupError):  # nothing is left of it
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
