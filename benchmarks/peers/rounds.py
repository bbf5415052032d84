"""The runs: engines in turn, round after round, one engine's processes alive at a time.

A round takes every engine through a case once, and the next round does so again, in reverse order: slow changes of
the machine (its neighbours, its clock) reach all engines alike. Figures are kept for each round; ratios are taken
within a round.
"""

import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from peers.cases import MAX_BATCH, Case, OfflineCase, ServedCase
from peers.checkpoints import SHAPES
from peers.engines import ENGINES, THREADS, EngineError, EngineProcess
from peers.servers import SERVERS, ServerProcess

# vLLM compiles the model when it first sees it: two minutes on a quiet machine.
LOAD_TIMEOUT_S = 900
GENERATE_TIMEOUT_S = 900
# Between two engines, so that no thread of the last one still spins.
PAUSE_S = 1.0

# {"case", "engine", "round", "batch", figures…} or, where an engine failed, {"case", "engine", "round", "error"}
Record = dict


def run_rounds(cases: list[Case], engines: set[str], repeats: int, root: Path, quick: bool) -> Iterator[Record]:
    """Yields records as they are measured."""
    for case in cases:
        chosen = [name for name in case.engines if name.split("-")[0] in engines]
        for number in range(repeats):
            for name in chosen if number % 2 == 0 else reversed(chosen):
                time.sleep(PAUSE_S)
                base = {"case": case.name, "engine": name, "round": number}
                run = _offline if isinstance(case, OfflineCase) else _served
                try:
                    yield from (base | record for record in run(case, name, number, root, quick))
                except (EngineError, subprocess.SubprocessError) as error:
                    yield base | {"error": str(error)}


def _offline(case: OfflineCase, name: str, number: int, root: Path, quick: bool) -> Iterator[Record]:
    batches = [batch for batch in case.batches if batch <= MAX_BATCH.get(name, batch)]
    batches = batches[:2] if quick else batches
    output_len = 9 if quick else case.output_len
    spec = ENGINES[name]
    model = spec.model(case.shape, case.number_format, root)
    rng = random.Random(number)
    vocab_size = SHAPES[case.shape].vocab_size
    with EngineProcess(spec, root, root / f"{case.name}-{name}.log") as engine:
        loaded = engine.ask(
            LOAD_TIMEOUT_S,
            op="load",
            model=str(model),
            threads=THREADS,
            max_batch=max(batches),
            max_len=case.input_len + case.output_len + 16,
            number_format=case.number_format,
        )

        def seconds(batch: int, length: int) -> float:
            prompts = [rng.choices(range(vocab_size), k=case.input_len) for _ in range(batch)]
            reply = engine.ask(GENERATE_TIMEOUT_S, op="generate", prompts=prompts, output_len=length)
            if reply["tokens"] != [length] * batch:
                raise EngineError(f"{name} gave {reply['tokens']} tokens instead of {length} each")
            taken: float = reply["seconds"]
            return taken

        for batch in batches:
            seconds(batch, 4)  # warm-up at this batch size
            first, whole = seconds(batch, 1), seconds(batch, output_len)
            yield {
                "batch": batch,
                "prefill_tokens_s": batch * case.input_len / first,
                # None where a disturbance made the short run the longer one: nothing can be said of decode then.
                "decode_tokens_s": batch * (output_len - 1) / (whole - first) if whole > first else None,
                "flags": loaded["flags"],
                "version": loaded["version"],
            }


def _served(case: ServedCase, name: str, number: int, root: Path, quick: bool) -> Iterator[Record]:
    spec = SERVERS[name]
    concurrencies = case.concurrencies[:1] if quick else case.concurrencies
    with ServerProcess(spec, root, case, root / f"{case.name}-{name}.log") as server:
        for concurrency in concurrencies:
            result = server.load(
                concurrency, 4 if quick else case.prompts(concurrency), seed=1000 * number + concurrency
            )
            yield {
                "batch": concurrency,
                "output_tokens_s": result["output_throughput"],
                "ttft_ms": result["median_ttft_ms"],
                "itl_ms": result["median_itl_ms"],
                "cached_tokens": result["total_cached_tokens"],
                "flags": spec.flags,
            }
