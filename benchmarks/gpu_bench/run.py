"""One run: which work is measured, by whom, in which order, and for how long."""

import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gpu_bench.engine import Engine, Workload
from gpu_bench.machine import Limits, Machine
from gpu_bench.ours import Quire
from gpu_bench.peers import ContinuousBatching, Generate
from gpu_bench.report import Row
from gpu_bench.shapes import Shape

# The settings of `quire executor`.
VARIANTS: dict[str, dict[str, str | bool]] = {
    "": {},
    "no batch invariance": {"batch_invariant": False},
    "FP8 weights": {"quantization": "fp8"},
    "FP8 KV": {"kv_cache_dtype": "fp8"},
}
PEERS = {"generate": Generate, "continuous batching": ContinuousBatching}
# Most telling first.
PEER_ORDER = (1, 64, 256, 16, 4)
ROUNDS = 3
# Seconds that a cell of peers may need at least; with less left none is begun.
CELL_SECONDS = 20.0


class Run:
    """The rows so far, and the time that is left."""

    def __init__(self, device: torch.device, dtype: str, workload: Workload, limits: Limits, deadline: float) -> None:
        self.rows: list[Row] = []
        self.limits = limits
        self._device = device
        self._dtype = dtype
        self._workload = workload
        self._deadline = deadline

    def measure_ours(self, shape: Shape, variant: str, folder: Path) -> None:
        """All of our rows of one variant."""
        works = [f"decode {batch}" for batch in self._workload.batches] + [f"prefill {self._workload.prefill}"]
        _progress(f"{shape.name} {variant}")
        quire: Quire | None = None
        try:
            with self._limited():
                quire = Quire(folder, self._workload, self._device, self._dtype, **VARIANTS[variant])
                for work in works:
                    self.rows.append(self._measure_work(shape, variant, work, quire))
        except Exception as error:
            done = {row.work for row in self.rows if (row.model, row.variant) == (shape.name, variant)}
            self.rows += [Row(shape.name, variant, work, 0, _reason(error)) for work in works if work not in done]
        if quire is not None:
            quire.close()

    def measure_peers(self, shape: Shape, folder: Path) -> None:
        """Peers beside us, in turns; into the rows that are there."""
        engines: dict[str, Engine | str] = {}
        for name, make in {"Quire": Quire, **PEERS}.items():
            _progress(f"{shape.name} {name}")
            try:
                with self._limited():
                    engines[name] = make(folder, self._workload, self._device, self._dtype)
            except Exception as error:
                engines[name] = _reason(error)
        batches = [batch for batch in PEER_ORDER if batch in self._workload.batches]
        for work in [f"decode {batch}" for batch in batches] + [f"prefill {self._workload.prefill}"]:
            row = next(row for row in self.rows if (row.model, row.variant, row.work) == (shape.name, "", work))
            self._measure_cell(row, engines)
        for engine in engines.values():
            if not isinstance(engine, str):
                engine.close()

    def _measure_work(self, shape: Shape, variant: str, work: str, quire: Quire) -> Row:
        """One row of ours alone: the median of rounds after one that is not counted."""
        kind, size = work.split()
        turn = _turn(quire, work)
        turn()
        seconds = statistics.median(turn() for _ in range(ROUNDS))
        if kind == "prefill":
            limit = 2 * shape.matrix_parameters * int(size) / self.limits.matrix_rate
            return Row(shape.name, variant, work, int(size), seconds, limit)
        weights = quire.model.decoder.num_bytes
        if not quire.model.config.tie_word_embeddings:
            # Of the embedding's table a step reads a row for each sequence.
            weights -= shape.config["vocab_size"] * shape.config["hidden_size"] * quire.model.dtype.itemsize
        kv = int(size) * self._workload.mean_context * quire.model.cache_group.bytes_per_token
        return Row(shape.name, variant, work, int(size), seconds, (weights + kv) / self.limits.bandwidth)

    def _measure_cell(self, row: Row, engines: dict[str, Engine | str]) -> None:
        times: dict[str, list[float]] = {name: [] for name in engines}
        failures = {name: engine for name, engine in engines.items() if isinstance(engine, str)}
        # The largest caches do not fit together.
        crowded = row.work == f"decode {max(self._workload.batches)}" and len(self._workload.batches) > 2
        for round_ in range(2 if crowded else ROUNDS + 1):
            for name, engine in engines.items():
                if isinstance(engine, str) or name in failures:
                    continue
                if time.monotonic() + CELL_SECONDS > self._deadline:
                    if not times[name]:
                        failures[name] = "no time was left (--budget)"
                    continue
                _progress(f"{row.model} {row.work} {name}, round {round_}")
                try:
                    with self._limited():
                        seconds = _turn(engine, row.work)()
                    # The first is a warm-up, which may compile.
                    if round_ > 0 or crowded:
                        times[name].append(seconds)
                except Exception as error:
                    failures[name] = _reason(error)
                if crowded:
                    engine.make_room()
        for engine in engines.values():
            if not isinstance(engine, str):
                engine.make_room()
        ours = times.pop("Quire")
        if ours:
            row.seconds = statistics.median(ours)
        row.peers = {
            name: statistics.median(own) if own and name not in failures else failures.get(name, "no time was left")
            for name, own in times.items()
        }

    def as_json(self, machine: Machine, *, tiny: bool) -> dict[str, Any]:
        """One object."""
        return {
            "benchmark": "gpu",
            "tiny": tiny,
            **machine.as_json(),
            "copy_gb_s": round(self.limits.bandwidth / 1e9, 1),
            "bf16_tflop_s": round(self.limits.matrix_rate / 1e12, 1),
            "context": self._workload.context,
            "mean_context": self._workload.mean_context,
            "batch_invariance_costs": self.cost_of_invariance(),
            "rows": [row.as_json() for row in self.rows],
        }

    def cost_of_invariance(self) -> dict[str, float]:
        """By model and work: our time with it to that without."""
        seconds = {(row.model, row.variant, row.work): row.seconds for row in self.rows}
        costs = {}
        for (model, variant, work), without in seconds.items():
            own = seconds.get((model, "", work))
            if variant == "no batch invariance" and isinstance(without, float) and isinstance(own, float):
                costs[f"{model} {work}"] = round(own / without, 4)
        return costs

    @contextmanager
    def _limited(self) -> Iterator[None]:
        """Breaks off what is still running when the time is over, wherever it is in Python. Raises TimeoutError."""

        def over(*_: object) -> None:
            raise TimeoutError("no time was left (--budget)")

        before = signal.signal(signal.SIGALRM, over)
        signal.setitimer(signal.ITIMER_REAL, max(0.01, self._deadline - time.monotonic()))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def _turn(engine: Engine, work: str) -> Callable[[], float]:
    kind, size = work.split()
    return engine.prefill_seconds if kind == "prefill" else lambda: engine.decode_seconds(int(size))


def _reason(error: Exception) -> str:
    lines = str(error).strip().split("\n")
    return f"{type(error).__name__}: {lines[0][:300]}"


def _progress(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
