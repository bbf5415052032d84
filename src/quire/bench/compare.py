"""`quire bench compare`: Hugging Face `generate` and Quire side by side, at one user and at many.

Both have the same checkpoint, dtype, cores, prompts (as token ids) and numbers of tokens; decoding is greedy and goes
on past the end-of-sequence token. A user sends a request when the last one was answered. Quire's side is what
`quire serve` starts (gateway, scheduler, executor; the supervisor is a thread of this process), measured over HTTP by
streaming clients; the other side is one process that is measured from within, so that it has no network to pay for.

Only one side computes at a time. They take turns round after round, in reverse order every second time, so that slow
changes of the machine reach both alike. Figures are medians over the rounds; a ratio is taken within each round first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import uvloop
from rich.console import Console

from quire.bench.backends import CompletionsBackend
from quire.bench.compare_child import HfProcess
from quire.bench.compare_prompts import load_prompts
from quire.bench.compare_report import comparison_table, summarise_rounds
from quire.bench.load import run_load
from quire.bench.memory import PeakMemory, memory_of
from quire.bench.prompts import BenchRequest
from quire.bench.report import save_json
from quire.bench.settings import CompareSettings, ServeBenchSettings
from quire.bench.statistics import summarise
from quire.bench.timeline import Timeline
from quire.config import LocalSettings, ServeSettings
from quire.errors import InvalidRequestError, ServiceUnavailableError
from quire.model_path import local_folder
from quire.supervisor import Supervisor

_METRICS, _PERCENTILES = ("ttft", "e2el"), (50.0, 95.0)
# Characters that the table needs.
_FILE_WIDTH: Final = 120
# Requests of the warm-up.
_WARM_UP: Final = 4


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two; `run` answers prompts for a number of users, and `memory` is what its processes take now."""

    name: str
    run: Callable[[list[list[int]], int], list[Timeline]]
    memory: Callable[[], int]


def bench_compare(settings: CompareSettings) -> dict[str, Any]:
    """Measures both, prints the report, writes the files asked for; returns the result.

    Raises StartupError where one side cannot be started or fails, and InvalidRequestError for prompts of no use.
    """
    texts = load_prompts(settings.prompts)
    folder = local_folder(settings.model)
    if settings.plot is not None:
        from quire.bench.plot import require_matplotlib

        require_matplotlib()
    console, progress = Console(highlight=False), Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    progress.print("Starting both …")
    with HfProcess() as child:
        about = child.ask(
            settings.startup_timeout,
            op="load",
            model=settings.model,
            revision=settings.revision,
            dtype=settings.dtype,
            device=settings.device,
        )
        prompts = child.ask(settings.startup_timeout, op="tokenize", texts=texts)["prompts"]
        _check_lengths(prompts, settings, about["max_len"])
        about |= child.ask(settings.round_timeout, op="set_threads", **_threads(prompts, settings))
        with _quire_side(settings) as quire:
            hf = Side("hf", _hf_run(child, settings), lambda: memory_of([child.pid]))
            rounds = _run_rounds((hf, quire), prompts, settings, progress)
    name = settings.model if folder is None else folder.name
    result = _describe(name, settings, about) | {"rounds": rounds, "summary": summarise_rounds(rounds)}
    console.print(comparison_table(result))
    if settings.output_json is not None:
        save_json(settings.output_json, result)
        console.print(f"result: {settings.output_json}")
    if settings.plot is not None:
        from quire.bench.compare_plot import plot_comparison

        plot_comparison(result, settings.plot)
        console.print(f"plot: {settings.plot}")
    return result


def _threads(prompts: list[list[int]], settings: CompareSettings) -> dict[str, Any]:
    """Numbers of threads for generate, and the prompts to try them with."""
    all_cores = settings.threads or len(os.sched_getaffinity(0))
    candidates = sorted({1, all_cores}) if settings.hf_threads is None else [settings.hf_threads]
    at_a_time = max(settings.user_counts) if settings.hf_mode == "batch" else 1
    return {"prompts": _requests(prompts, at_a_time), "candidates": candidates}


def _check_lengths(prompts: list[list[int]], settings: CompareSettings, model_len: int) -> None:
    limit = min(model_len, settings.max_model_len or model_len)
    for number, prompt in enumerate(prompts, 1):
        if not prompt:
            raise InvalidRequestError(f"prompt {number} has no tokens", field="prompts")
        if len(prompt) + settings.output_len > limit:
            raise InvalidRequestError(
                f"prompt {number} has {len(prompt)} tokens: with --output-len {settings.output_len} that is more than "
                f"the {limit} that fit",
                field="prompts",
            )


def _hf_run(child: HfProcess, settings: CompareSettings) -> Callable[[list[list[int]], int], list[Timeline]]:
    def run(prompts: list[list[int]], users: int) -> list[Timeline]:
        return child.run(prompts, users, settings.hf_mode, settings.output_len, settings.round_timeout)

    return run


@contextmanager
def _quire_side(settings: CompareSettings) -> Iterator[Side]:
    """A server with the settings, on free ports of the loopback, for the length of the block."""
    shared = {name: getattr(settings, name) for name in LocalSettings.model_fields}
    serve = ServeSettings.load({**shared, "host": "127.0.0.1", "port": 0, "grpc_port": 0, "log_level": "warning"})
    with Supervisor(serve) as supervisor:
        url = f"http://127.0.0.1:{supervisor.start(gateway=serve)['port']}"

        def run(prompts: list[list[int]], users: int) -> list[Timeline]:
            return uvloop.run(_load_quire(url, serve.model_name, prompts, users, settings))

        def memory() -> int:
            return memory_of([child.process.pid for child in supervisor.children], keepers=[os.getpid()])

        yield Side("quire", run, memory)


async def _load_quire(
    url: str, model: str, prompts: list[list[int]], users: int, settings: CompareSettings
) -> list[Timeline]:
    target = ServeBenchSettings.load({"base_url": url, "model": model, "ignore_eos": True, "temperature": 0.0})
    backend = CompletionsBackend(target, model)
    requests = [BenchRequest(prompt, settings.output_len) for prompt in prompts]
    try:
        return await run_load(backend, requests, [0.0] * len(requests), users, settings.round_timeout, lambda _: None)
    finally:
        await backend.close()


def _run_rounds(
    sides: tuple[Side, Side], prompts: list[list[int]], settings: CompareSettings, progress: Console
) -> list[dict[str, Any]]:
    """A record for each round and number of users, with the figures of both sides."""
    for side in sides:  # thread pools, buffers, connections
        side.run(_requests(prompts, _WARM_UP), _WARM_UP)
    records = []
    for number in range(settings.rounds):
        for users in settings.user_counts:
            progress.print(f"round {number + 1} of {settings.rounds}, {users} users …")
            chosen = _requests(prompts, users * settings.requests_per_user)
            order = sides if number % 2 == 0 else sides[::-1]
            measured = {side.name: _measure(side, chosen, users) for side in order}
            texts = [[timeline.text for timeline in measured[side.name][1]] for side in sides]
            records.append(
                {
                    "round": number,
                    "users": users,
                    **{side.name: measured[side.name][0] for side in sides},
                    "texts": len(chosen),
                    "equal_texts": sum(_same(*pair) for pair in zip(*texts, strict=True)),
                }
            )
    return records


def _requests(prompts: list[list[int]], count: int) -> list[list[int]]:
    return [prompts[i % len(prompts)] for i in range(count)]


def _measure(side: Side, prompts: list[list[int]], users: int) -> tuple[dict[str, Any], list[Timeline]]:
    with PeakMemory(side.memory) as peak:
        timelines = side.run(prompts, users)
    errors = [timeline.error for timeline in timelines if not timeline.succeeded]
    if errors:
        raise ServiceUnavailableError(f"{len(errors)} requests to {side.name} failed; the first: {errors[0]}")
    figures = summarise(timelines, _METRICS, _PERCENTILES)
    figures["peak_memory_bytes"] = peak.bytes
    # Without streaming there is no first token to wait for: whoever asked gets all at the end.
    figures["streams"] = all(len(timeline.arrived) > 1 for timeline in timelines)
    return figures, timelines


def _same(left: str, right: str) -> bool:
    """Whether two answers are equal; the end of one may be half a character."""
    return left.rstrip("\N{REPLACEMENT CHARACTER}") == right.rstrip("\N{REPLACEMENT CHARACTER}")


def _describe(model: str, settings: CompareSettings, about: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": model,
        "output_len": settings.output_len,
        "requests_per_user": settings.requests_per_user,
        "num_rounds": settings.rounds,
        "prompts": "built in" if settings.prompts is None else str(settings.prompts),
        "enable_prefix_caching": settings.enable_prefix_caching,
        "hf_mode": settings.hf_mode,
        "hf": about,
    }
